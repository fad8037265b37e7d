// A tracked controller, or a phone itself, through WebXR. Needs https or localhost, and a browser that has it.

// Axes of WebXR (x right, y up, z towards the viewer) -> ours (x forward, y left, z up); the quaternion as w, x, y, z.
export const toOurs = ({position: p, orientation: q}) => [-p.z, -p.x, p.y, q.w, -q.z, -q.x, q.y];

export class Hand {
  constructor() { this.clear(); }

  clear() { this.engaged = false; this.pose = null; this.grip = 0; this.armed = false; this.session = null; this.touched = false; }

  release() { this.engaged = false; this.armed = false; this.touched = false; }

  static async mode() {
    for (const mode of ["immersive-ar", "immersive-vr"]) {
      try { if (await navigator.xr?.isSessionSupported(mode)) return mode; } catch { /* forbidden here */ }
    }
    return null;
  }

  async start(mode, ended) {
    const session = await navigator.xr.requestSession(mode, {optionalFeatures: ["local-floor"]});
    const gl = document.createElement("canvas").getContext("webgl", {xrCompatible: true});
    session.updateRenderState({baseLayer: new XRWebGLLayer(session, gl)});
    const space = await session.requestReferenceSpace("local");
    this.session = session;
    session.addEventListener("selectstart", () => { this.touched = this.armed; });
    session.addEventListener("selectend", () => { this.touched = false; this.armed = true; });
    session.addEventListener("visibilitychange", () => session.visibilityState !== "visible" && this.release());
    session.addEventListener("end", () => { this.clear(); ended(); });
    const frame = (_, now) => {
      if (this.session !== session) return;
      session.requestAnimationFrame(frame);
      gl.bindFramebuffer(gl.FRAMEBUFFER, session.renderState.baseLayer.framebuffer);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      this.take(now, space, session);
    };
    session.requestAnimationFrame(frame);
  }

  // Lost tracking opens the clutch: without a pose there is nothing to follow.
  take(now, space, session) {
    const source = [...session.inputSources].find((one) => one.gripSpace);
    const found = source ? now.getPose(source.gripSpace, space) : now.getViewerPose(space);
    const buttons = source?.gamepad?.buttons ?? [];
    const held = source ? Boolean(buttons[1]?.pressed) : this.touched;
    if (!held) this.armed = true; // a grip that is held when it begins, or was let go of by release(), is none
    this.pose = found && !found.emulatedPosition ? toOurs(found.transform) : null;
    this.engaged = held && this.armed && this.pose !== null;
    this.grip = source ? -(buttons[0]?.value ?? 0) + (buttons[4]?.pressed ? 1 : 0) : 0;
  }
}
