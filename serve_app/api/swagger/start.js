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

// Swagger UI invents a value for every field of a form, and sends it: the least number, the first choice, a text where
// no file was chosen. This leaves the defaults and examples of the server, and one empty place for a file.
const noInventedValues = () => ({
  afterLoad() {
    const { getSampleSchema } = this.fn;
    this.fn.getSampleSchema = (schema, contentType, ...others) => {
      const isField = contentType === false;
      const { type, default: value, examples } = schema.toJS?.() ?? schema;
      if (isField && type === "array") return [""];
      if (isField && value === undefined && examples === undefined) return "";
      return getSampleSchema(schema, contentType, ...others);
    };
  },
});

// A place in a list that was left empty would be sent as an empty text.
const withoutEmptyFields = (request) => {
  if (request.body instanceof FormData) {
    const filled = [...request.body].filter(([, value]) => value !== "");
    request.body = new FormData();
    filled.forEach(([name, value]) => request.body.append(name, value));
  }
  return request;
};

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  tryItOutEnabled: true,
  // Megabytes of base64 in colour would freeze the tab.
  syntaxHighlight: false,
  // Asks a host of its makers otherwise.
  validatorUrl: null,
  requestInterceptor: withoutEmptyFields,
  plugins: [bodyOfTheChosenKind, noInventedValues],
});
