"use strict";

// The API as a page, made of /openapi.json: what there is, what it takes, and a way to try it.

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function example(schema, definitions, depth = 0) {
  if (!schema || depth > 6) return null;
  if (schema.$ref) return example(definitions[schema.$ref.split("/").pop()], definitions, depth + 1);
  if ("default" in schema) return schema.default;
  if (schema.enum) return schema.enum[0];
  if (schema.const !== undefined) return schema.const;
  const choices = schema.anyOf || schema.oneOf;
  if (choices && !schema.properties) return example(choices[0], definitions, depth + 1);
  if (schema.type === "object") {
    const made = {};
    for (const name of schema.required || []) {
      made[name] = example((schema.properties || {})[name], definitions, depth + 1);
    }
    return made;
  }
  if (schema.type === "array") return [];
  if (schema.type === "string") return schema.format === "date-time" ? new Date().toISOString() : "…";
  if (schema.type === "integer" || schema.type === "number") return schema.minimum ?? 0;
  return schema.type === "boolean" ? false : null;
}

function request(method, path, fields, body, file) {
  let place = path;
  const query = new URLSearchParams();
  const headers = {};
  const key = document.getElementById("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  for (const [parameter, input] of fields) {
    if (!input.value) continue;
    if (parameter.in === "path") place = place.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (parameter.in === "query") query.append(parameter.name, input.value);
    else headers[parameter.name] = input.value;
  }
  const options = { method, headers };
  if (file && file.files.length) {
    options.body = file.files[0];
    headers["Content-Type"] = "application/octet-stream";
  } else if (body && body.value.trim()) {
    options.body = body.value;
    headers["Content-Type"] = "application/json";
  }
  return [query.size ? `${place}?${query}` : place, options];
}

async function show(response, output) {
  output.textContent = `${response.status} ${response.statusText}\n`;
  output.className = response.ok ? "good" : "bad";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += value;
    output.textContent += value;
  }
  try {
    output.textContent = `${response.status} ${response.statusText}\n${JSON.stringify(JSON.parse(text), null, 2)}`;
  } catch {
    // Lines and events are shown as they came.
  }
}

function operation(method, path, described, definitions) {
  const box = element("details", { id: described.operationId });
  box.append(element("summary", {}, element("b", { textContent: method.toUpperCase() }), element("code", { textContent: path }), ` ${described.summary}`));
  if (described.description) box.append(element("p", { textContent: described.description }));
  const fields = [];
  for (const parameter of described.parameters || []) {
    const input = element("input", { type: "text", name: parameter.name, required: parameter.required });
    fields.push([parameter, input]);
    box.append(element("label", {}, `${parameter.name} `, element("span", { className: "note", textContent: parameter.description }), input));
  }
  let body = null;
  let file = null;
  const content = described.requestBody && described.requestBody.content;
  if (content && content["application/json"]) {
    const written = JSON.stringify(example(content["application/json"].schema, definitions), null, 2);
    body = element("textarea", { rows: 6, name: "body", value: written });
    box.append(element("label", {}, "Body", body));
  } else if (content) {
    file = element("input", { type: "file", name: "file" });
    box.append(element("label", {}, "File", file));
  }
  const output = element("pre", { hidden: true });
  const send = element("button", { textContent: "Send", type: "button" });
  send.addEventListener("click", async () => {
    output.hidden = false;
    output.textContent = "…";
    try {
      const [url, options] = request(method.toUpperCase(), path, fields, body, file);
      await show(await fetch(url, options), output);
    } catch (error) {
      output.textContent = String(error);
      output.className = "bad";
    }
  });
  box.append(send, output);
  const answers = element("ul");
  for (const [status, answer] of Object.entries(described.responses)) {
    answers.append(element("li", {}, element("code", { textContent: status }), ` ${answer.description}`));
  }
  box.append(element("details", {}, element("summary", { textContent: "Answers" }), answers));
  return box;
}

async function load() {
  const described = await (await fetch("/openapi.json")).json();
  const definitions = described.components.schemas;
  document.getElementById("version").textContent = described.info.version;
  document.getElementById("about").textContent = described.info.description;
  const place = document.getElementById("operations");
  place.textContent = "";
  for (const tag of described.tags) {
    place.append(element("h2", { textContent: tag.name }));
    for (const [path, methods] of Object.entries(described.paths)) {
      for (const [method, one] of Object.entries(methods)) {
        if (one.tags.includes(tag.name)) place.append(operation(method, path, one, definitions));
      }
    }
  }
  document.body.dataset.ready = "yes";
}

load().catch((error) => {
  document.getElementById("operations").textContent = String(error);
});
