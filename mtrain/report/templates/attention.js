// Attention maps: one picture per head, of one sentence, layer and kind (or all kinds).

const CELL = 14, FONT = 10; // of a picture: side of a cell, size of its letters
const FAINTEST = 3; // of 255; weaker weights look like none, and are not drawn
const SIZES = { small: 0.9, medium: 1.25, large: 1.8 };
const KINDS = {
  cross: ["Encoder-decoder attention", "to write a piece (row), it looks at the source"],
  encoder: ["Encoder self-attention", "each source piece (row) looks at all source pieces"],
  decoder: ["Masked decoder self-attention", "to write a piece (row), it looks back at what is written so far"],
};

class Attention {
  constructor() {
    const data = JSON.parse(byId("attention-data").textContent);
    this.sentences = data.sentences;
    this.kinds = data.kinds || Object.keys(KINDS);
    this.field = {};
    for (const name of ["sentence", "kind", "layer", "heads", "size"]) {
      this.field[name] = byId(`attention-${name}`);
      this.field[name].addEventListener("change", () => this.draw());
    }
    fill(this.field.sentence, this.sentences.map((maps, i) => [i, `${maps.label ? `${maps.label}: ` : ""}${this.text(maps.source)}`]));
    const kinds = this.kinds.map((kind) => [kind, KINDS[kind][0]]);
    fill(this.field.kind, kinds.length > 1 ? [["all", "all"], ...kinds] : kinds);
    fill(this.field.size, Object.keys(SIZES).map((size) => [size, size]));
    this.field.kind.value = data.kind;
    this.field.size.value = "medium";
    const [layers, heads] = this.most();
    const numbers = (n) => Array.from({ length: n }, (_, i) => [i + 1, i + 1]);
    fill(this.field.layer, numbers(layers));
    this.field.layer.value = data.layer || layers;
    const some = Array.isArray(data.heads) && data.heads.length > 1 ? [[data.heads.join(), data.heads.join(", ")]] : [];
    fill(this.field.heads, [["all", "all"], ["mean", "mean"], ...some, ...numbers(heads)]);
    this.field.heads.value = String(data.heads);
    this.draw();
  }

  /** Layers and heads. */
  most() {
    return [0, 1].map((axis) => Math.max(...this.sentences.flatMap((maps) => this.kinds.map((kind) => maps[kind].shape[axis]))));
  }

  text(pieces) { return visible(pieces.slice(0, -1).join("").replaceAll("\u2581", " ").trim()); }

  draw() {
    const maps = this.sentences[this.field.sentence.value];
    byId("attention-target").textContent = `\u2192 ${this.text(maps.written)}`;
    const kinds = this.field.kind.value === "all" ? this.kinds : [this.field.kind.value];
    byId("attention-maps").replaceChildren(...kinds.map((kind) => this.block(maps, kind)));
  }

  /** The pictures of one kind. */
  block(maps, kind) {
    const [layers, heads, n, m] = maps[kind].shape;
    const layer = Math.min(this.field.layer.value, layers);
    const bytes = Uint8Array.from(atob(maps[kind].bytes), (c) => c.charCodeAt(0));
    const weights = Array.from({ length: heads }, (_, h) => bytes.subarray(((layer - 1) * heads + h) * n * m).subarray(0, n * m));
    const mean = Float32Array.from(weights[0], (_, i) => weights.reduce((sum, head) => sum + head[i], 0) / heads);
    const chosen = this.field.heads.value, pictures = element("div", "maps");
    if (chosen === "all" || chosen === "mean") pictures.append(this.picture(maps, kind, `mean of ${heads} heads`, mean));
    const shown = chosen === "all" ? weights.map((_, h) => h + 1) : chosen === "mean" ? [] : chosen.split(",");
    for (const head of shown) pictures.append(this.picture(maps, kind, `head ${head}`, weights[head - 1]));
    const block = element("div"), title = element("h3", "", `${KINDS[kind][0]}, layer ${layer} of ${layers} `);
    title.append(element("small", "soft", KINDS[kind][1]));
    block.append(title, pictures);
    return block;
  }

  /** One head: weights of 0 to 255, row by row. */
  picture(maps, kind, name, weights) {
    const shown = (pieces) => pieces.map((piece) => visible(piece.replaceAll("\u2581", "_")));
    const rows = shown(kind === "encoder" ? maps.source : maps.written), columns = shown(kind === "decoder" ? maps.read : maps.source);
    const left = labelWidth(rows), below = labelWidth(columns);
    const width = columns.length * CELL, height = rows.length * CELL;
    const picture = svg("svg", {
      viewBox: `0 0 ${left + width + 1} ${height + below}`,
      role: "img", "aria-label": `${KINDS[kind][0]}, ${name}`, "font-size": FONT,
    });
    picture.style.width = `${(left + width + 1) * SIZES[this.field.size.value]}px`;
    const cells = svg("g", { transform: `translate(${left} 0)` });
    weights.forEach((weight, i) => {
      if (weight < FAINTEST) return;
      const x = i % columns.length * CELL, y = Math.floor(i / columns.length) * CELL;
      cells.append(svg("rect", { x, y, width: CELL - 1, height: CELL - 1, "fill-opacity": (weight / 255).toFixed(2) }));
    });
    if (kind === "decoder") {
      const steps = rows.map((_, r) => `H${(r + 1) * CELL}V${(r + 1) * CELL}`).join("");
      cells.append(svg("path", { class: "masked", d: `M${width} 0${steps}H${width}Z` }));
    }
    const frame = svg("rect", { class: "frame", width, height });
    const pointer = svg("rect", { class: "frame pointer", width: CELL, height: CELL, visibility: "hidden" });
    cells.append(frame, pointer);
    picture.append(cells);
    rows.forEach((piece, r) => picture.append(svg("text", { x: left - 4, y: (r + 0.72) * CELL, "text-anchor": "end" }, piece)));
    columns.forEach((piece, c) => picture.append(svg("text",
      { transform: `translate(${left + (c + 0.72) * CELL} ${height + 4}) rotate(-90)`, "text-anchor": "end" }, piece)));
    picture.addEventListener("pointermove", (event) => {
      const box = frame.getBoundingClientRect();
      const r = Math.floor((event.clientY - box.top) / box.height * rows.length);
      const c = Math.floor((event.clientX - box.left) / box.width * columns.length);
      const isInside = r in rows && c in columns;
      pointer.setAttribute("visibility", isInside ? "visible" : "hidden");
      pointer.setAttribute("transform", `translate(${c * CELL} ${r * CELL})`);
      byId("attention-reading").textContent = !isInside ? "" : kind === "decoder" && c > r
        ? `\u201c${rows[r]}\u201d cannot look at \u201c${columns[c]}\u201d, which is not written yet`
        : `${name}: ${kind === "encoder" ? "" : "to write "}\u201c${rows[r]}\u201d looks at \u201c${columns[c]}\u201d: ${(weights[r * columns.length + c] / 255).toFixed(2)}`;
    });
    picture.addEventListener("pointerleave", () => { pointer.setAttribute("visibility", "hidden"); byId("attention-reading").textContent = ""; });
    const figure = element("figure");
    figure.append(element("figcaption", "", name), picture);
    return figure;
  }
}

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Room for the longest of some labels. */
function labelWidth(labels) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `${FONT}px ${getComputedStyle(document.body).fontFamily}`;
  return Math.max(...labels.map((label) => pen.measureText(label).width)) + 8;
}

if (byId("attention-data")) new Attention();
