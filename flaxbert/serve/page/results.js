// What answers look like. Each function returns { nodes, spoken }: what is shown, and a sentence for screen readers.

import { element, percent, readable } from "./dom.js";

const FIRST = 10;
const NUM_TONES = 8;

function bar({ name, share, shown, note }, isBest) {
  const fillNode = element("span", { class: "fill" });
  fillNode.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return element(
    "li",
    { class: isBest ? "best" : null },
    element("span", { class: "name" }, name, note ? element("small", {}, note) : []),
    element("span", { class: "value" }, shown),
    element("span", { class: "track", "aria-hidden": "true" }, fillNode),
  );
}

// Entries: { name, share in 0 to 1, shown, note }.
export function bars(entries) {
  const list = element("ol", { class: "bars" }, entries.slice(0, FIRST).map((entry, place) => bar(entry, place === 0)));
  if (entries.length <= FIRST) return [list];
  const more = element(
    "button",
    {
      type: "button",
      class: "quiet",
      click: () => {
        list.append(...entries.slice(FIRST).map((entry) => bar(entry, false)));
        more.remove();
      },
    },
    `Show all ${entries.length}`,
  );
  return [list, more];
}

export function scores(answer) {
  const isShare = answer.every(({ score }) => score >= 0 && score <= 1);
  const highest = Math.max(...answer.map(({ score }) => Math.abs(score)), 1e-9);
  const entries = answer.map(({ label, score }) => ({
    name: label,
    share: isShare ? score : Math.abs(score) / highest,
    shown: isShare ? percent(score) : score.toFixed(3),
  }));
  return { nodes: bars(entries), spoken: `${entries[0].name}, ${entries[0].shown}` };
}

// Offsets of the server count characters, those of JavaScript halves of some.
function pieces(text, spans) {
  const characters = Array.from(text);
  const found = [];
  let place = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    if (span.start < place || span.end <= span.start) continue;
    found.push({ text: characters.slice(place, span.start).join("") });
    found.push({ text: characters.slice(span.start, span.end).join(""), span });
    place = span.end;
  }
  found.push({ text: characters.slice(place).join("") });
  return found.filter((piece) => piece.text);
}

export function entities(text, answer) {
  const labels = [...new Set(answer.map((entity) => entity.entity_group))].sort();
  const tone = (label) => `tone-${labels.indexOf(label) % NUM_TONES}`;
  const marked = element(
    "p",
    { class: "marked" },
    pieces(text, answer).map((piece) =>
      piece.span
        ? element(
            "mark",
            { class: `entity ${tone(piece.span.entity_group)}`, title: percent(piece.span.score) },
            element("span", { class: "words" }, piece.text),
            element("span", { class: "tag" }, piece.span.entity_group),
          )
        : piece.text,
    ),
  );
  if (!answer.length) return { nodes: [marked, element("p", { class: "empty" }, "No entities were found.")], spoken: "No entities were found." };
  const legend = element(
    "ul",
    { class: "legend", "aria-label": "Kinds of entities" },
    labels.map((label) => {
      const count = answer.filter((entity) => entity.entity_group === label).length;
      return element("li", { class: tone(label) }, label, " ", element("b", {}, count));
    }),
  );
  const rows = answer.map((entity) =>
    element("tr", {}, element("th", { scope: "row" }, entity.word), element("td", {}, entity.entity_group), element("td", { class: "number" }, percent(entity.score))),
  );
  const head = element("tr", {}, ["Words", "Kind", "Score"].map((name) => element("th", { scope: "col" }, name)));
  const table = element("table", { class: "list" }, element("thead", {}, head), element("tbody", {}, rows));
  return { nodes: [legend, marked, table], spoken: answer.map((entity) => `${entity.word}: ${entity.entity_group}`).join("; ") };
}

export function answers(context, found) {
  const best = found[0];
  const marked = element(
    "p",
    { class: "marked context" },
    pieces(context, best.answer ? [best] : []).map((piece) => (piece.span ? element("mark", { class: "found" }, piece.text) : piece.text)),
  );
  const entries = found.map(({ answer, score }) => ({ name: answer || "no answer in this text", share: score, shown: percent(score) }));
  return { nodes: [...bars(entries), marked], spoken: `${entries[0].name}, ${entries[0].shown}` };
}

export function masks(answer) {
  const several = Array.isArray(answer[0]) ? answer : [answer];
  const nodes = several.flatMap((words, place) => [
    ...(several.length > 1 ? [element("h3", {}, `Mask ${place + 1}`)] : []),
    ...bars(words.map(({ token_str: word, score, sequence }) => ({ name: word.trim() || word, share: score, shown: percent(score), note: several.length > 1 ? "" : sequence }))),
  ]);
  return { nodes, spoken: several.map((words) => `${words[0].token_str}, ${percent(words[0].score)}`).join("; ") };
}

export function ranking(texts, answer) {
  const values = answer.map(({ score }) => score);
  const [lowest, highest] = [Math.min(...values), Math.max(...values)];
  const isShare = lowest >= 0 && highest <= 1;
  const shareOf = (score) => (isShare ? score : highest > lowest ? 0.04 + (0.96 * (score - lowest)) / (highest - lowest) : 1);
  const entries = answer.map(({ index, score }) => ({ name: texts[index], share: shareOf(score), shown: score.toFixed(4) }));
  const nodes = bars(entries);
  nodes[0].classList.add("ranking");
  return { nodes, spoken: `First: ${entries[0].name}` };
}

const dot = (left, right) => left.reduce((sum, value, place) => sum + value * right[place], 0);

function cell(value) {
  const strength = Math.min(1, Math.abs(value));
  const node = element("td", { class: `${value < 0 ? "cold" : "warm"}${strength > 0.5 ? " strong" : ""}` }, value.toFixed(2));
  node.style.setProperty("--share", `${Math.round(100 * strength)}%`);
  return node;
}

// Vectors have length 1, so that products are cosines.
export function similarities(texts, vectors) {
  const head = element("tr", {}, element("td", {}), texts.map((text, place) => element("th", { scope: "col", title: text }, place + 1)));
  const rows = texts.map((text, row) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", title: text }, element("b", {}, row + 1), element("span", {}, text)),
      vectors.map((vector) => cell(dot(vectors[row], vector))),
    ),
  );
  const caption = element("caption", { class: "unseen" }, "Cosine of each text with each other");
  const table = element("table", { class: "heat" }, caption, element("thead", {}, head), element("tbody", {}, rows));
  const scale = element("p", { class: "scale", "aria-hidden": "true" }, element("span", {}, "−1"), element("span", { class: "ramp" }), element("span", {}, "1"));
  let best = null;
  for (let row = 0; row < texts.length; row += 1)
    for (let column = 0; column < row; column += 1) {
      const value = dot(vectors[row], vectors[column]);
      if (!best || value > best.value) best = { value, row, column };
    }
  const size = `${vectors.length} vectors of ${vectors[0].length} entries`;
  const near = best ? `. Most alike: ${best.column + 1} and ${best.row + 1}, ${best.value.toFixed(2)}` : "";
  return {
    nodes: [
      element("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Similarity matrix" }, table),
      element("div", { class: "below" }, element("p", { class: "empty" }, size + near), scale),
    ],
    spoken: size + near,
  };
}

export function words(answer) {
  const highest = Math.max(...answer.map(({ value }) => value), 1e-9);
  const entries = answer.map(({ word, value }) => ({ name: word, share: value / highest, shown: value.toFixed(3) }));
  if (!entries.length) return { nodes: [element("p", { class: "empty" }, "No word has a weight.")], spoken: "No word has a weight." };
  return { nodes: bars(entries), spoken: `${entries[0].name}, ${entries[0].shown}` };
}

export const plain = (answer) => ({
  nodes: [element("pre", { class: "json", tabindex: "0", "aria-label": "Answer as JSON" }, readable(answer))],
  spoken: "The answer is shown as JSON.",
});
