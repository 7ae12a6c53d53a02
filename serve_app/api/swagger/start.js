// Swagger UI keeps what stood in the body where its kind is changed, and would send a form as JSON (its issue 9699).
const bodyOfTheChosenKind = () => ({
  statePlugins: {
    oas3: {
      wrapActions: {
        setRequestContentType: (change, system) => (choice) => {
          const { value: mediaType, pathMethod } = choice;
          const examples = ["paths", ...pathMethod, "requestBody", "content", mediaType, "examples"];
          const example = system.specSelectors.specJson().getIn(examples)?.first();
          const text = example ? JSON.stringify(example.get("value"), null, 2) : "";
          system.oas3Actions.setRequestBodyValue({ value: text, pathMethod });
          return change(choice);
        },
      },
    },
  },
});

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  tryItOutEnabled: true,
  // Megabytes of base64 in colour would freeze the tab.
  syntaxHighlight: false,
  // Asks a host of its makers otherwise.
  validatorUrl: null,
  plugins: [bodyOfTheChosenKind],
});
