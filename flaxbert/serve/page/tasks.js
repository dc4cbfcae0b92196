// What can be asked of a model: the fields of each operation, what is sent, and how the answer is shown.

import { CallError } from "./api.js";
import * as results from "./results.js";

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
const listed = (text) => text.split(",").map((word) => word.trim()).filter(Boolean);

const text = { name: "text", label: "Text", rows: 4 };
const pair = { name: "pair", label: "Second text", rows: 2, optional: true };

const classify = {
  title: "Classify",
  fields: () => [text, pair],
  examples: (model) =>
    judges(model)
      ? [
          { text: "A dog runs across the beach.", pair: "An animal is outside." },
          { text: "A dog runs across the beach.", pair: "The dog is asleep." },
        ]
      : [
          { text: "A film of quiet power, played with great warmth." },
          { text: "The plot falls apart long before the end." },
          { text: "It is not without charm, but it is far too long." },
        ],
  path: "predict",
  body: ({ text, pair }) => ({ inputs: pair.trim() ? [text, pair] : text }),
  show: (_, answer) => results.scores(answer),
};

const tag = {
  title: "Entities",
  fields: () => [text],
  examples: () => [
    { text: "Ada Lovelace met Charles Babbage in London and wrote about his Analytical Engine." },
    { text: "Just landed in Lisbon, off to see Radiohead with Anna! Thanks for the seat, Lufthansa." },
  ],
  path: "ner",
  body: ({ text }) => ({ inputs: text }),
  show: ({ text }, answer) => results.entities(text, answer),
};

const answer = {
  title: "Answer",
  fields: () => [{ name: "question", label: "Question", rows: 1 }, { name: "context", label: "Context", rows: 5 }],
  examples: () => [
    {
      question: "When was the bridge opened?",
      context: "The Forth Bridge crosses the Firth of Forth in Scotland. It was opened on 4 March 1890 and is still used by trains.",
    },
    {
      question: "Who uses it today?",
      context: "The Forth Bridge crosses the Firth of Forth in Scotland. It was opened on 4 March 1890 and is still used by trains.",
    },
  ],
  path: "qa",
  body: ({ question, context }) => ({ inputs: { question, context }, parameters: { top_k: 3 } }),
  show: ({ context }, found) => results.answers(context, found),
};

const fillMask = {
  title: "Fill masks",
  fields: (model) => [{ ...text, rows: 3, hint: `Write ${model.mask_token} where a word is missing.` }],
  examples: (model) => [
    { text: `Paris is the ${model.mask_token} of France.` },
    { text: `She poured the ${model.mask_token} into a cup.` },
    { text: `The ${model.mask_token} chased the ${model.mask_token} up a tree.` },
  ],
  path: "fill-mask",
  body: ({ text }) => ({ inputs: text, parameters: { top_k: 8 } }),
  show: (_, found) => results.masks(found),
};

const zeroShot = {
  title: "Own labels",
  fields: () => [{ ...text, rows: 3 }, { name: "labels", label: "Labels, with commas between them", rows: 1 }],
  examples: () => [
    { text: "The striker scored twice in the last ten minutes.", labels: "sport, politics, science, food" },
    { text: "Simmer the tomatoes until the sauce thickens.", labels: "sport, politics, science, food" },
  ],
  path: "zero-shot",
  body: ({ text, labels }) => ({ inputs: text, parameters: { candidate_labels: listed(labels) } }),
  show: (_, found) => results.scores(found),
};

const rerank = {
  title: "Rank",
  fields: () => [{ name: "query", label: "Query", rows: 1 }, { name: "texts", label: "Texts, one a line", rows: 6 }],
  examples: () => [
    {
      query: "how do plants make sugar",
      texts:
        "Photosynthesis turns light, water and carbon dioxide into sugar.\nSugar cane is grown in warm countries.\nThe stock market fell on Monday.\nChlorophyll absorbs the light that leaves need for it.",
    },
  ],
  path: "rerank",
  body: ({ query, texts }) => ({ query, texts: lines(texts) }),
  show: ({ texts }, found) => results.ranking(lines(texts), found),
};

const compare = {
  title: "Compare",
  fields: () => [{ name: "texts", label: "Texts, one a line", rows: 6 }],
  examples: () => [
    {
      texts:
        "How do I reset my password?\nI forgot my login and need a new one.\nWhere can I see my invoices?\nPlease send me last month's bill.\nWhat is the weather like today?\nIt will rain in the afternoon.",
    },
    { texts: "A man is playing a guitar.\nSomeone plays an instrument.\nThe cat sleeps on the sofa.\nA kitten naps." },
  ],
  path: "embed",
  body: ({ texts }) => ({ inputs: lines(texts) }),
  show: ({ texts }, vectors) => results.similarities(lines(texts), vectors),
};

const weigh = {
  title: "Weigh words",
  fields: () => [text],
  examples: () => [{ text: "Photosynthesis turns light, water and carbon dioxide into sugar." }],
  path: "embed_sparse",
  body: ({ text }) => ({ inputs: [text] }),
  async more(send, [found]) {
    const best = [...found].sort((a, b) => b.value - a.value).slice(0, 20);
    if (!best.length) return [];
    const names = await send("decode", { ids: best.map(({ index }) => [index]) });
    return best.map(({ value }, place) => ({ value, word: names[place] }));
  },
  show: (_, found) => results.words(found),
};

const anything = {
  title: "Ask",
  fields: () => [{ name: "json", label: "Inputs as JSON", rows: 5 }],
  examples: () => [{ json: '"A fine film."' }],
  path: "",
  body({ json }) {
    try {
      return { inputs: JSON.parse(json) };
    } catch (error) {
      throw new CallError(`The inputs are no JSON: ${error.message}`, 422);
    }
  },
  show: (_, found) => results.plain(found),
};

const judges = (model) => model.labels.some((label) => label.toLowerCase().startsWith("entail"));

// Returns the operations of a version of a model, by name; the first is the usual one.
export function operationsOf(model) {
  const has = (name) => model.functions.includes(name);
  const isClassifier = ["sequence-classification", "next-sentence-prediction"].includes(model.task);
  if (isClassifier && model.labels.length === 1) return { rerank, classify };
  if (isClassifier) return judges(model) ? { classify, zeroShot } : { classify };
  if (model.task === "token-classification") return { tag };
  if (model.task === "question-answering") return { answer };
  if (has("masked")) return { fillMask, zeroShot };
  if (has("vectors")) return { compare };
  if (has("sparse")) return { weigh };
  return { anything };
}
