// Makes elements, and brings what is shown up to date without making it anew: what has the focus
// keeps it, and a screen reader keeps its place.

const SVG = new Set(['svg', 'path', 'rect', 'title']);

// h makes an element. Children are elements and texts; null and false are left out.
export function h(tag, attributes, ...children) {
  const e = SVG.has(tag) ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) e.setAttribute(name, value === true ? '' : value);
  }
  e.append(...children.flat(9).filter((c) => c !== null && c !== undefined && c !== false));
  return e;
}

// show makes parent's children those given.
export function show(parent, ...children) {
  const next = children.flat(9).filter((c) => c !== null && c !== undefined && c !== false)
    .map((c) => (typeof c === 'object' ? c : document.createTextNode(c)));
  patchChildren(parent, next);
}

function patchChildren(parent, next) {
  const now = [...parent.childNodes];
  next.forEach((n, i) => {
    if (i < now.length) patch(now[i], n);
    else parent.append(n);
  });
  now.slice(next.length).forEach((n) => n.remove());
}

const key = (n) => (n.getAttribute ? n.getAttribute('data-key') : null);

function patch(now, next) {
  if (now.nodeName !== next.nodeName || key(now) !== key(next)) {
    now.replaceWith(next);
    return;
  }
  if (now.nodeType === Node.TEXT_NODE) {
    if (now.data !== next.data) now.data = next.data;
    return;
  }
  for (const a of [...now.attributes]) if (!next.hasAttribute(a.name)) now.removeAttribute(a.name);
  for (const a of next.attributes) if (now.getAttribute(a.name) !== a.value) now.setAttribute(a.name, a.value);
  patchChildren(now, [...next.childNodes]);
}
