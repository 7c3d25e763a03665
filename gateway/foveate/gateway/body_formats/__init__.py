"""How a body holds media and options: multipart forms, JSON, and compression of any of them."""
