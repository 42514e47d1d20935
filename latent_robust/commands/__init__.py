"""What a person types. Imports nothing heavy until a command has checked its options."""
