"use strict";

// What our pages share. Text of a corpus enters a page as text nodes only, never as markup.

const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Control characters as the symbols that Unicode has for them. */
function visible(text) {
  return text.replace(/[\u0000-\u001f\u007f]/g, (c) =>
    c === "\u007f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt(0)));
}

/** Fill a `<select>` with [value, text] choices; the choice before stays if it is still there. */
function fill(field, choices) {
  const before = field.value || field.dataset.wanted;
  field.replaceChildren(...choices.map(([value, text]) => new Option(text, value)));
  if (choices.some(([value]) => String(value) === before)) field.value = before;
}
