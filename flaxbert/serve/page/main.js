// The page: which model, what is asked of it, and what it answers.

import { CallError, call, keys } from "./api.js";
import { byId, element, megabytes, readable, say } from "./dom.js";
import { Monitor, showTiming } from "./monitor.js";
import { Registry } from "./registry.js";
import { operationsOf } from "./tasks.js";

const CHAMPION = "champion";
const LOADING_MILLISECONDS = 2000;

const page = { models: [], model: null, operations: {}, operation: "", written: new Map(), running: null };
const registry = new Registry(loadModels);
const monitor = new Monitor();

const version = () => page.model?.versions[CHAMPION];

// ---- models

async function loadModels() {
  try {
    const { data } = await call("models");
    page.models = data.models;
  } catch (error) {
    delete byId("main").dataset.loading;
    showFailure(error);
    return;
  }
  byId("notice").hidden = true;
  const names = page.models.map((model) => model.name);
  const select = byId("model");
  if (select.disabled || names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    const wanted = page.model?.name ?? new URLSearchParams(location.hash.slice(1)).get("model");
    select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    select.value = names.includes(wanted) ? wanted : names[0];
    select.disabled = false;
  }
  await choose(select.value);
  if (page.models.some((model) => !model.versions[CHAMPION])) setTimeout(loadModels, LOADING_MILLISECONDS);
}

// Resolves when its versions are shown, too.
function choose(name) {
  const before = page.model;
  page.model = page.models.find((model) => model.name === name);
  const served = version();
  byId("fact-task").textContent = served?.task ?? "is being loaded";
  byId("fact-version").textContent = served?.version ?? "–";
  byId("fact-engine").textContent = served?.engine ?? "–";
  byId("fact-dtype").textContent = served?.dtype ?? "–";
  byId("fact-size").textContent = served ? megabytes(served.size_bytes) : "–";
  byId("run").disabled = !served;
  const same = before?.name === name && before.versions[CHAMPION]?.task === served?.task;
  if (served && !same) {
    page.operations = operationsOf(served);
    showTabs();
    clearAnswer();
  }
  delete byId("main").dataset.loading;
  return registry.show(page.model);
}

// ---- what is asked

function showTabs() {
  const names = Object.keys(page.operations);
  const tabs = names.map((name, place) =>
    element(
      "label",
      {},
      element("input", { type: "radio", name: "operation", value: name, checked: place === 0, change: () => (chooseOperation(name), clearAnswer()) }),
      element("span", {}, page.operations[name].title),
    ),
  );
  byId("operations").replaceChildren(byId("operations").querySelector("legend"), ...tabs);
  chooseOperation(names[0]);
}

function chooseOperation(name) {
  page.operation = name;
  page.running?.abort();
  const operation = page.operations[name];
  const fields = operation.fields(version());
  const examples = operation.examples(version());
  byId("fields").replaceChildren(...fields.map(fieldNode));
  byId("examples").replaceChildren(
    ...examples.map((example, place) =>
      element("button", { type: "button", class: "quiet", click: () => write(fields, example) }, examples.length > 1 ? `Example ${place + 1}` : "Example"),
    ),
  );
  write(fields, page.written.get(`${page.model.name} ${name}`) ?? examples[0]);
}

function fieldNode({ name, label, rows, hint, optional }) {
  const id = `field-${name}`;
  const input =
    rows === 1
      ? element("input", { id, type: "text", autocomplete: "off" })
      : element("textarea", { id, rows, spellcheck: "false" });
  if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
  const parts = [element("label", { for: id }, label), input, hint ? element("p", { class: "hint", id: `${id}-hint` }, hint) : []].flat();
  if (optional) return element("details", { class: "field", id: `${id}-more` }, element("summary", {}, `Add a ${label.toLowerCase()}`), ...parts);
  return element("div", { class: "field" }, ...parts);
}

function write(fields, values) {
  for (const { name, optional } of fields) {
    byId(`field-${name}`).value = values[name] ?? "";
    if (optional) byId(`field-${name}-more`).open = Boolean(values[name]);
  }
}

function written() {
  const fields = page.operations[page.operation].fields(version());
  const values = Object.fromEntries(fields.map(({ name }) => [name, byId(`field-${name}`).value]));
  page.written.set(`${page.model.name} ${page.operation}`, values);
  return values;
}

// ---- what is answered

function clearAnswer() {
  say(byId("failure"), "");
  byId("raw").hidden = true;
  byId("spoken").textContent = "";
  byId("result").replaceChildren(element("p", { class: "empty" }, "Nothing was asked yet."));
}

function showFailure(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof CallError)) throw error;
  const needsKey = error.status === 401 || error.status === 403;
  if (needsKey || !page.model) {
    byId("notice-text").textContent = error.message;
    byId("notice-keys").hidden = !needsKey;
    byId("notice").hidden = false;
  }
  if (page.model) say(byId("failure"), error.message);
}

function setBusy(isBusy) {
  byId("run").setAttribute("aria-disabled", String(isBusy));
  byId("run").textContent = isBusy ? "Running" : "Run";
  byId("result").setAttribute("aria-busy", String(isBusy));
}

async function run() {
  const operation = page.operations[page.operation];
  if (!operation || page.running) return;
  const running = new AbortController();
  page.running = running;
  setBusy(true);
  say(byId("failure"), "");
  const values = written();
  const base = `models/${encodeURIComponent(page.model.name)}`;
  const send = async (route, body) => (await call(route ? `${base}/${route}` : base, { body, signal: running.signal })).data;
  try {
    const body = operation.body(values);
    const path = operation.path ? `${base}/${operation.path}` : base;
    const { data, timing } = await call(path, { body, signal: running.signal });
    const answer = operation.more ? await operation.more(send, data) : data;
    if (running.signal.aborted) return;
    const { nodes, spoken } = operation.show(values, answer);
    byId("result").replaceChildren(...nodes);
    byId("spoken").textContent = spoken;
    byId("raw-text").textContent = `POST /${path}\n${readable(body)}\n\n${readable(data)}`;
    byId("raw").hidden = false;
    byId("notice").hidden = true;
    showTiming(timing);
    const known = Object.values(page.model.versions).map((served) => served.version);
    if (timing.version && !known.includes(timing.version)) loadModels(); // an alias has moved
  } catch (error) {
    showFailure(error);
  } finally {
    if (page.running === running) page.running = null;
    setBusy(page.running !== null);
  }
}

// ---- keys

function openKeys() {
  byId("key-api").value = keys.get("api");
  byId("key-admin").value = keys.get("admin");
  say(byId("keys-failure"), "");
  byId("keys").showModal();
}

async function useKeys(event) {
  event.preventDefault();
  const entered = { api: byId("key-api").value.trim(), admin: byId("key-admin").value.trim() };
  if (!Object.values(entered).every(keys.allows)) {
    say(byId("keys-failure"), "A key is made of letters, digits and signs of ASCII, without spaces.");
    return;
  }
  for (const [kind, value] of Object.entries(entered)) keys.set(kind, value);
  byId("keys").close();
  monitor.poll();
  await loadModels();
}

// ---- begin

byId("model").addEventListener("change", (event) => {
  history.replaceState(null, "", `#${new URLSearchParams({ model: event.target.value })}`);
  choose(event.target.value);
});
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
byId("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
byId("keys-open").addEventListener("click", openKeys);
byId("notice-keys").addEventListener("click", openKeys);
byId("keys-cancel").addEventListener("click", () => byId("keys").close());
byId("keys-form").addEventListener("submit", useKeys);

monitor.start();
loadModels();
