"""Who may talk to the page's server: its token, the names it goes by, and a certificate of this installation."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from robot_rl.errors import ConfigError, DeployError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_for(host: str, token: str) -> str:
    """The token that pages must show: as configured, made where the machine is exposed, "" where none is needed.

    Raises:
        ConfigError: it is too short to be a secret.
    """
    if token and len(token) < 16:
        raise ConfigError(
            "teleop.token", expected="at least 16 characters", got=str(len(token)), hint="Leave it out: one is made."
        )
    return token or ("" if is_loopback(host) else secrets.token_urlsafe(24))


def is_token(given: str, token: str) -> bool:
    """Compared in constant time; "" needs none."""
    return not token or hmac.compare_digest(given.encode(), token.encode())


def is_allowed_host(header: str, *, host: str, names: Sequence[str]) -> bool:
    """Whether a Host header names this server; a page of a rebound DNS name says another.

    On loopback only its three names do. Where exposed, any IP address does (an address can't be rebound), this machine's
    own name with or without .local, and `names`.
    """
    name = _name_of(header)
    if name in names or name in LOOPBACK:
        return True
    if is_loopback(host):
        return False
    own = socket.gethostname().lower()
    if name in (host.lower(), own, f"{own.partition('.')[0]}.local"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_same_origin(origin: str | None, header: str, *, https: bool) -> bool:
    """Whether a WebSocket comes from our own page. Browsers always name the origin; other programs need not."""
    return origin is None or origin == f"{'https' if https else 'http'}://{header}"


def _name_of(header: str) -> str:
    """`localhost:8060`, `[::1]:8060` -> the name without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.rpartition(":")[0].lower() if header.count(":") == 1 else header.lower()


def certificate_of(folder: Path, names: Sequence[str]) -> tuple[Path, Path]:
    """Certificate and key of this installation, made with openssl at the first use; the key is readable by its owner only.

    Args:
        folder: where they lie.
        names: host names and addresses that it is for, besides loopback's and this machine's.

    Raises:
        DeployError: there is no openssl, or it failed.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if certificate.exists() and key.exists():
        return certificate, key
    openssl = shutil.which("openssl")
    if openssl is None:
        raise DeployError(
            "https of the page", expected="the program openssl, to make a certificate", got="none",
            hint=f"apt install openssl, or put certificate.pem and key.pem into {folder}.",
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    hosts = dict.fromkeys([*LOOPBACK, socket.gethostname(), *names])
    alternatives = ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in hosts)
    partly = folder / f"key.{os.getpid()}.pem"
    os.close(os.open(partly, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
    command = [
        openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "800",
        "-subj", "/CN=robot-rl operator page", "-addext", f"subjectAltName={alternatives}",
        "-keyout", str(partly), "-out", str(certificate),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        partly.unlink(missing_ok=True)
        raise DeployError(
            "https of the page", expected="a certificate", got=done.stderr.strip()[-200:], hint=" ".join(command[:3])
        )
    partly.replace(key)
    return certificate, key


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
