"""The families of encoders, one file each: a table of variants as the family's paper has it."""
