"""The demo model: a small Stable Diffusion trained from scratch on scenes drawn here."""
