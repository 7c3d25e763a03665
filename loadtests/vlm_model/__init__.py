"""The bench of the shipped vision-language model."""
