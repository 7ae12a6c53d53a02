"""The HTTP application: routes, authentication, load shedding, OpenAPI, and the web pages."""
