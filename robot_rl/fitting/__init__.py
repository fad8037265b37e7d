"""What offline RL learns besides the policy: critics and the transition model, each fitted by one function."""
