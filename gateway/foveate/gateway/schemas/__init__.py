"""JSON bodies, response headers, problem details and the OpenAPI document of the HTTP API."""
