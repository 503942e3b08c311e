// The list of sentences, and the page's navigation.

const FIRST = 10, MORE = 25; // sentences shown

// -- words and their differences ----------------------------------------------------------------

const segmenters = {};

/** A sentence as words, spaces and punctuation; joined, they are the sentence again. */
function words(text, lang) {
  if (!("Segmenter" in Intl)) return text.match(/\s+|[\p{L}\p{N}\p{M}]+|[^]/gu) || [];
  if (!segmenters[lang]) {
    let segmenter;
    try { segmenter = new Intl.Segmenter(lang, { granularity: "word" }); }
    catch { segmenter = new Intl.Segmenter("en", { granularity: "word" }); }
    segmenters[lang] = segmenter;
  }
  return Array.from(segmenters[lang].segment(text), (part) => part.segment);
}

/** Which words of `a` and of `b` are in no longest common subsequence of the two. */
function differences(a, b) {
  const isWord = (word) => word.trim() !== "";
  const left = a.map((_, i) => i).filter((i) => isWord(a[i]));
  const right = b.map((_, i) => i).filter((i) => isWord(b[i]));
  const n = left.length, m = right.length;
  const inA = new Set(left), inB = new Set(right);
  if (n * m > 1e6) return [new Set(), new Set()]; // too long to compare in a moment
  const width = m + 1;
  const common = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      common[i * width + j] = a[left[i]] === b[right[j]]
        ? common[(i + 1) * width + j + 1] + 1
        : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < n && j < m;) {
    if (a[left[i]] === b[right[j]]) { inA.delete(left[i++]); inB.delete(right[j++]); }
    else if (common[(i + 1) * width + j] >= common[i * width + j + 1]) i++;
    else j++;
  }
  return [inA, inB];
}

/** Words in a row, some of them marked; neighbours and the space between them share one mark. */
function marked(parts, chosen, className) {
  const isMarked = (i) => chosen.has(i) || (parts[i].trim() === "" && chosen.has(i - 1) && chosen.has(i + 1));
  const line = document.createDocumentFragment();
  for (let i = 0; i < parts.length;) {
    const mark = isMarked(i);
    let text = "";
    while (i < parts.length && isMarked(i) === mark) text += parts[i++];
    line.append(mark ? element("span", className, visible(text)) : visible(text));
  }
  return line;
}

// -- one test set -------------------------------------------------------------------------------

async function unpack(id) {
  const packed = atob(byId(id).textContent);
  const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** The list of sentences, as its fields ask for it. */
class Sentences {
  constructor(place) {
    this.place = place;
    this.runs = JSON.parse(place.dataset.runs);
    this.titles = JSON.parse(place.dataset.titles);
    this.loaded = {};
    this.field = {};
    for (const name of ["set", "sort", "flag", "text", "against"]) this.field[name] = byId(`by-${name}`);
    for (const field of Object.values(this.field)) {
      field.addEventListener(field.type === "search" ? "input" : "change", () => this.show());
    }
    byId("more").addEventListener("click", () => { this.limit += MORE; this.draw(); });
  }

  async show() {
    this.limit = FIRST;
    const id = this.field.set.value;
    this.loaded[id] ??= unpack(id);
    this.data = await this.loaded[id];
    this.sourceLang = byId(id).dataset.source;
    this.targetLang = byId(id).dataset.target;
    this.offer();
    this.chosen = this.select();
    this.draw();
  }

  /** Choices that depend on the test set. */
  offer() {
    const { outputs } = this.data;
    const found = new Set(outputs.flatMap((output) => Object.keys(output.faults)));
    const flags = [["", "all sentences"]];
    if (found.size) flags.push(["*", "any fault"]);
    for (const [name, title] of Object.entries(this.titles)) if (found.has(name)) flags.push([name, title]);
    if (outputs.length > 1) flags.push(["differ", "runs differ"]);
    fill(this.field.flag, flags);
    const order = [["order", "order of the test set"], ["chrf-up", "chrF, lowest first"], ["chrf-down", "chrF, highest first"],
      ["long", "longest source first"], ["short", "shortest source first"]];
    if (outputs[0].scores) order.push(["score-up", "model score, lowest first"], ["score-down", "model score, highest first"]);
    if (outputs.length > 1) {
      order.push(["gain", `${this.runs[outputs[1].run]} gains most chrF`], ["loss", `${this.runs[outputs[1].run]} loses most chrF`]);
    }
    if (found.has(this.field.flag.value)) order.push(["worst", "worst of this fault first"]);
    fill(this.field.sort, order);
    const against = [["reference", "the reference"]];
    if (outputs.length > 1) against.push(["first", this.runs[outputs[0].run]]);
    fill(this.field.against, against);
    this.field.against.closest("label").hidden = against.length < 2;
  }

  /** The numbers of the sentences to be shown, in order. */
  select() {
    const { sources, references, outputs } = this.data;
    const flag = this.field.flag.value;
    const text = this.field.text.value.toLowerCase();
    const faults = outputs.flatMap((output) => flag === "*" ? Object.values(output.faults) : output.faults[flag] || []);
    const flagged = new Set(faults.flatMap((fault) => fault.lines));
    const isAsked = (i) => {
      if (flag === "differ") { if (outputs.every((output) => output.texts[i] === outputs[0].texts[i])) return false; }
      else if (flag && !flagged.has(i)) return false;
      return !text || [sources[i], references[i], ...outputs.map((output) => output.texts[i])]
        .some((line) => line.toLowerCase().includes(text));
    };
    const chosen = sources.map((_, i) => i).filter(isAsked);
    const keys = {
      "chrf-up": (i) => outputs[0].chrf[i], "chrf-down": (i) => -outputs[0].chrf[i],
      "long": (i) => -sources[i].length, "short": (i) => sources[i].length,
      "score-up": (i) => outputs[0].scores[i], "score-down": (i) => -outputs[0].scores[i],
      "gain": (i) => outputs[0].chrf[i] - outputs[1].chrf[i], "loss": (i) => outputs[1].chrf[i] - outputs[0].chrf[i],
    };
    const rank = new Map();
    for (const fault of faults) fault.worst.forEach(([i], k) => rank.set(i, Math.min(k, rank.get(i) ?? Infinity)));
    keys.worst = (i) => rank.get(i) ?? rank.size;
    const key = keys[this.field.sort.value];
    return key ? chosen.sort((a, b) => key(a) - key(b) || a - b) : chosen;
  }

  draw() {
    const { sources, outputs } = this.data;
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const means = this.chosen.length ? outputs.map((output) =>
      `${outputs.length > 1 ? `${this.runs[output.run]}: ` : ""}mean chrF ${mean(this.chosen.map((i) => output.chrf[i])).toFixed(1)}`) : [];
    byId("count").textContent = [`${this.chosen.length.toLocaleString("en")} of ${sources.length.toLocaleString("en")} sentences`, ...means].join(" · ");
    this.place.replaceChildren(...this.chosen.slice(0, this.limit).map((i) => this.sentence(i)));
    byId("more").hidden = this.chosen.length <= this.limit;
  }

  /** One sentence with all its translations. */
  sentence(i) {
    const { sources, references, outputs } = this.data;
    const list = element("dl", "sentence");
    const head = element("div", "head");
    head.append(element("span", "", `sentence ${(i + 1).toLocaleString("en")}`));
    list.append(head);
    const isToFirst = this.field.against.value === "first" && outputs.length > 1;
    const reference = words(references[i], this.targetLang);
    const texts = outputs.map((output) => words(output.texts[i], this.targetLang));
    const base = isToFirst ? texts[0] : reference;
    const compared = texts.map((parts) => differences(base, parts));
    const only = compared[isToFirst ? 1 : 0];
    this.line(list, "source", this.sourceLang, this.sought(words(sources[i], this.sourceLang)));
    this.line(list, "reference", this.targetLang,
      isToFirst ? this.sought(reference) : marked(reference, outputs.length > 1 ? everywhere(compared) : only[0], "missed"));
    outputs.forEach((output, k) => {
      const isBase = isToFirst && k === 0;
      const text = marked(texts[k], isBase ? new Set() : compared[k][1], "other");
      const name = this.runs.length > 1 ? element("span", `run run-${output.run % 6 + 1}`, this.runs[output.run]) : "output";
      const cell = this.line(list, name, this.targetLang, text);
      let figures = `chrF ${output.chrf[i].toFixed(1)}`;
      if (output.scores) figures += ` · score ${output.scores[i].toFixed(2).replace("-", "\u2212")}`;
      cell.append(element("span", "figures", figures));
      for (const [name, fault] of Object.entries(output.faults)) {
        if (!fault.lines.includes(i)) continue;
        const detail = fault.worst.find(([line]) => line === i);
        const text = detail ? `${this.titles[name]}: ${detail[1]}` : this.titles[name];
        cell.append(" ", element("span", "flag", visible(text)));
      }
    });
    return list;
  }

  line(list, name, lang, text) {
    const title = element("dt");
    title.append(name);
    const cell = element("dd");
    const body = element("bdi");
    body.lang = lang;
    body.append(text);
    cell.append(body);
    list.append(title, cell);
    return cell;
  }

  /** A line without differences; the search text is marked in it. */
  sought(parts) {
    const text = parts.join("");
    const asked = this.field.text.value;
    const at = asked ? text.toLowerCase().indexOf(asked.toLowerCase()) : -1;
    if (at < 0) return visible(text);
    const line = document.createDocumentFragment();
    line.append(visible(text.slice(0, at)), element("mark", "found", visible(text.slice(at, at + asked.length))),
      visible(text.slice(at + asked.length)));
    return line;
  }
}

/** Words of the reference that no output has. */
function everywhere(compared) {
  return new Set([...compared[0][0]].filter((word) => compared.every(([missed]) => missed.has(word))));
}

// -- the page -----------------------------------------------------------------------------------

/** A link such as #sentences?flag=copied&set=set-0 chooses what the list shows. */
function follow(sentences, target) {
  const asked = new URLSearchParams(target.split("?")[1] || "");
  for (const [name, value] of asked) {
    const field = sentences.field[name];
    if (!field) continue;
    field.dataset.wanted = value;
    field.value = value;
  }
  sentences.show();
  byId("sentences").scrollIntoView();
}

/** Mark the chapter in view in the navigation. */
function watchChapters() {
  const links = new Map(Array.from(document.querySelectorAll("nav a"), (link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id).setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  document.querySelectorAll("section[id]").forEach((section) => seen.observe(section));
}

/** While training continues: reload the page, unless someone is using it. */
function refresh(seconds) {
  let usedAt = 0;
  for (const event of ["input", "change", "pointerdown", "keydown"]) {
    document.addEventListener(event, () => { usedAt = Date.now(); });
  }
  setInterval(() => { if (Date.now() - usedAt > 30000) location.reload(); }, seconds * 1000);
}

function openAllForPrint() {
  const closed = [];
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details:not([open])").forEach((part) => { part.open = true; closed.push(part); });
  });
  addEventListener("afterprint", () => { closed.splice(0).forEach((part) => { part.open = false; }); });
}

function start() {
  watchChapters();
  openAllForPrint();
  const every = Number(document.body.dataset.refresh);
  if (every) refresh(every);
  const place = byId("list");
  if (!place) return;
  if (!("DecompressionStream" in window)) {
    byId("count").textContent = "This browser is too old to unpack the sentences (2023 or newer is needed).";
    return;
  }
  const sentences = new Sentences(place);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#sentences?']");
    if (!link) return;
    event.preventDefault();
    follow(sentences, link.getAttribute("href"));
  });
  sentences.show();
}

start();
