// What the last request took, and how the whole server does.

import { call } from "./api.js";
import { byId, drawing, milliseconds } from "./dom.js";

const POLL_MILLISECONDS = 2000;
const NUM_POINTS = 60;
const [WIDTH, HEIGHT] = [300, 64];

export function showTiming(timing) {
  const parts = ["tokenization", "queue", "inference"];
  const known = parts.reduce((sum, name) => sum + (timing[name] ?? 0), 0);
  const rest = timing.total === null ? null : Math.max(0, timing.total - known);
  const values = { ...timing, rest };
  const whole = Math.max(known + (rest ?? 0), 1e-9);
  byId("latency-total").textContent = milliseconds(timing.total);
  for (const name of [...parts, "rest"]) {
    byId(`latency-${name}`).textContent = milliseconds(values[name]);
    byId("latency-stack").querySelector(`.${name}`).style.flexGrow = String((values[name] ?? 0) / whole);
  }
  byId("latency-tokens").textContent = timing.tokens ?? "–";
  byId("latency-trip").textContent = milliseconds(timing.trip);
}

// Samples without labels of the text format of Prometheus, by name.
export function parseMetrics(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const match = /^([A-Za-z_:][\w:]*)\s+(\S+)/.exec(line);
    if (match) found[match[1]] = Number(match[2]);
  }
  return found;
}

function draw(name, title, values, format) {
  const known = values.filter((value) => value !== null);
  const top = Math.max(...known, 0) || 1;
  const x = (place) => WIDTH - 3 - ((values.length - 1 - place) * (WIDTH - 6)) / (NUM_POINTS - 1);
  const y = (value) => HEIGHT - 3 - ((HEIGHT - 8) * value) / top;
  let [line, dots] = ["", ""];
  values.forEach((value, place) => {
    if (value === null) return;
    const begins = place === 0 || values[place - 1] === null;
    const point = `${x(place).toFixed(1)} ${y(value).toFixed(1)}`;
    if (begins && (values[place + 1] ?? null) === null) dots += `M${point}h0.01`; // no line leads to or from it
    else line += `${begins ? "M" : "L"}${point}`;
  });
  const chart = byId(`chart-${name}`);
  chart.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  chart.setAttribute("preserveAspectRatio", "none");
  chart.replaceChildren(
    drawing("path", { class: "grid", d: `M0 5H${WIDTH}M0 ${HEIGHT - 3}H${WIDTH}` }),
    drawing("path", { class: "line", d: line || "M0 0" }),
    drawing("path", { class: "dots", d: dots || "M0 0" }),
  );
  const last = known.length ? format(known.at(-1)) : "–";
  byId(`chart-${name}-now`).textContent = last;
  byId(`chart-${name}-top`).textContent = known.length ? `up to ${format(Math.max(...known))}` : "";
  chart.setAttribute(
    "aria-label",
    `${title} of the last two minutes: ${known.length ? `last ${last}, at most ${format(Math.max(...known))}` : "nothing yet"}`,
  );
}

const rate = (value) => value.toFixed(value < 10 ? 1 : 0);

export class Monitor {
  #latency = [];
  #rate = [];
  #before = null;

  start() {
    draw("latency", "Mean latency", [], milliseconds);
    draw("rate", "Requests per second", [], rate);
    this.poll();
    setInterval(() => document.hidden || this.poll(), POLL_MILLISECONDS);
    document.addEventListener("visibilitychange", () => document.hidden || this.poll());
  }

  async poll() {
    const state = byId("server-state");
    try {
      const { data } = await call("metrics", { text: true });
      this.#take(parseMetrics(data), performance.now() / 1000);
      state.dataset.state = "live";
      state.textContent = "live";
    } catch (error) {
      state.dataset.state = error.status === 401 || error.status === 403 ? "closed" : "gone";
      state.textContent = state.dataset.state === "closed" ? "needs a key" : "not reached";
      this.#before = null;
    }
  }

  #take(found, now) {
    const sample = {
      now,
      count: found.te_request_count ?? 0,
      sum: found.te_request_duration_sum ?? 0,
      finished: found.te_request_duration_count ?? 0,
    };
    const before = this.#before;
    if (before && now - before.now < 0.5) return; // two polls at once, after the page came back
    this.#before = sample;
    byId("server-queue").textContent = String(found.te_queue_size ?? "–");
    byId("server-count").textContent = sample.count.toLocaleString("en");
    if (!before || sample.count < before.count) return; // the first look, or another server
    const finished = sample.finished - before.finished;
    this.#latency.push(finished ? (1000 * (sample.sum - before.sum)) / finished : null);
    this.#rate.push((sample.count - before.count) / (now - before.now));
    for (const values of [this.#latency, this.#rate]) if (values.length > NUM_POINTS) values.shift();
    draw("latency", "Mean latency", this.#latency, milliseconds);
    draw("rate", "Requests per second", this.#rate, rate);
  }
}
