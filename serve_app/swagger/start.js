SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  tryItOutEnabled: true,
  // Megabytes of base64 in colour would freeze the tab.
  syntaxHighlight: false,
  // Asks a host of its makers otherwise.
  validatorUrl: null,
});
