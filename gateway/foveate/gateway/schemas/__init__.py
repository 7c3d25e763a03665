"""Response bodies, response headers, problem details and the OpenAPI document."""
