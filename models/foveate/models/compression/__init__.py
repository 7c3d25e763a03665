"""Methods that decide which visual tokens a language model gets of a picture, one a module."""
