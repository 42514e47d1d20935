"""The command line. A command imports torch and diffusers only after it has checked its options."""
