"""Images and pairs made dirty on purpose, with a record of what was done to each."""
