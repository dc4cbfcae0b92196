// Versions of a model of a registry: their scores, their aliases, and moving these.

import { call, keys } from "./api.js";
import { byId, element, say } from "./dom.js";

const CHAMPION = "champion";

export const isRegistered = (model) => model.source.startsWith("registry:");

// Asks in a dialog; resolves to whether the answer was yes.
function confirmed(title, text, action) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = action;
  return new Promise((resolve) => {
    const settle = (answer) => {
      listening.abort();
      dialog.close();
      resolve(answer);
    };
    const listening = new AbortController();
    const { signal } = listening;
    byId("confirm-form").addEventListener("submit", (event) => (event.preventDefault(), settle(true)), { signal });
    byId("confirm-no").addEventListener("click", () => settle(false), { signal });
    dialog.addEventListener("cancel", (event) => (event.preventDefault(), settle(false)), { signal });
    dialog.showModal();
    byId("confirm-no").focus();
  });
}

const scoresOf = (metrics) =>
  Object.entries(metrics).map(([name, value]) => element("span", { class: "score" }, `${name} `, element("b", {}, typeof value === "number" ? +value.toFixed(4) : value)));

export class Registry {
  #model = null;
  #changed;
  #turn = 0;

  // changed: called with no arguments after an alias moved.
  constructor(changed) {
    this.#changed = changed;
  }

  // Shows the versions of a model as GET /models describes it, or nothing where it is a folder.
  async show(model) {
    const turn = ++this.#turn;
    if (model?.name !== this.#model?.name) {
      say(byId("registry-failure"), "");
      byId("registry-spoken").textContent = "";
    }
    this.#model = model;
    byId("registry").hidden = !model || !isRegistered(model);
    if (byId("registry").hidden) return;
    if (!keys.get("admin")) {
      this.#showServed(model);
      return;
    }
    try {
      const { data } = await call(this.#path(), { admin: true });
      if (turn !== this.#turn) return;
      say(byId("registry-failure"), "");
      this.#showAll(data);
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#showServed(model);
      say(byId("registry-failure"), error.message);
    }
  }

  #path(action = "") {
    return `admin/models/${encodeURIComponent(this.#model.name)}${action}`;
  }

  #showServed(model) {
    const entries = Object.entries(model.versions).map(([role, version]) =>
      element("li", {}, element("p", { class: "head" }, element("b", {}, `Version ${version.version}`), element("span", { class: "alias" }, role)), element("p", { class: "scores" }, scoresOf(version.metrics))),
    );
    byId("registry-content").replaceChildren(
      element("ul", { class: "versions" }, entries),
      element("p", { class: "empty" }, "With an admin key all versions are shown, and aliases can be moved."),
    );
  }

  #showAll(data) {
    const served = Object.fromEntries(Object.entries(data.versions).map(([role, { version }]) => [version, role]));
    const alias = element("input", { id: "registry-alias", value: byId("registry-alias")?.value || CHAMPION, spellcheck: "false", autocomplete: "off", list: "registry-aliases" });
    const known = [...new Set([CHAMPION, ...Object.keys(data.aliases)])];
    const entry = ({ version, metrics, time, note }) => {
      const names = Object.keys(data.aliases).filter((name) => data.aliases[name] === version);
      const role = served[version];
      return element(
        "li",
        {},
        element(
          "p",
          { class: "head" },
          element("b", {}, `Version ${version}`),
          names.map((name) => element("span", { class: "alias" }, name)),
          element("button", { type: "button", class: "quiet", "aria-label": `Promote version ${version}`, click: () => this.#promote(version, alias.value.trim() || CHAMPION, data.aliases) }, "Promote"),
        ),
        element("p", { class: "scores" }, scoresOf(metrics)),
        element("p", { class: "when" }, role ? "served · " : "", element("time", { datetime: time }, time.slice(0, 16).replace("T", " ")), note ? ` · ${note}` : ""),
      );
    };
    byId("registry-content").replaceChildren(
      element("div", { class: "field" }, element("label", { for: "registry-alias" }, "Alias to move"), alias, element("datalist", { id: "registry-aliases" }, known.map((name) => element("option", { value: name })))),
      element("ul", { class: "versions" }, [...data.known].reverse().map(entry)),
      element("button", { type: "button", class: "quiet wide", id: "registry-back", click: () => this.#rollBack(alias.value.trim() || CHAMPION) }, "Roll back"),
    );
  }

  async #promote(version, alias, aliases) {
    const now = aliases[alias];
    const text = `The alias ${alias} of ${this.#model.name} moves from ${now ? `version ${now}` : "nowhere"} to version ${version}. Requests get the new version as soon as it is loaded.`;
    if (await confirmed(`Promote version ${version}?`, text, "Promote"))
      await this.#move("/promote", { version, alias }, `${alias} is version ${version}.`);
  }

  async #rollBack(alias) {
    const text = `The alias ${alias} of ${this.#model.name} goes back to where it stood before.`;
    if (await confirmed(`Roll ${alias} back?`, text, "Roll back"))
      await this.#move("/rollback", { alias }, `${alias} was rolled back.`);
  }

  async #move(action, body, sentence) {
    const content = byId("registry-content");
    const model = this.#model;
    say(byId("registry-failure"), "");
    content.inert = true;
    try {
      const { data } = await call(this.#path(action), { admin: true, body });
      await this.#changed();
      const [failed] = Object.values(data.failed);
      if (failed) say(byId("registry-failure"), `Version ${failed} could not be loaded, so the one before goes on answering. The log of the server says why.`);
      else byId("registry-spoken").textContent = sentence;
    } catch (error) {
      say(byId("registry-failure"), error.message);
    } finally {
      content.inert = false;
      if (this.#model?.name === model.name) (byId("registry-back") ?? byId("model")).focus();
    }
  }
}
