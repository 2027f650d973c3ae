// Saves a figure as one SVG file that needs nothing else: mount.js loads this when it is first asked.
// What a figure draws in SVG is copied with its computed styles; what it draws in HTML (words, numbers,
// boxes) becomes text and rectangles at the same place. Controls are left out.
(() => {
  const NAMESPACE = "http://www.w3.org/2000/svg";
  const LEFT_OUT = ".bf-controls, .bf-control, .bf-transport, .bf-tools, .bf-link, .bf-hidden, " +
    "[hidden], input, select";
  const LIGHT = {
    "--bf-ink": "#1f2328", "--bf-paper": "#ffffff", "--bf-accent": "#0b5cad", "color-scheme": "light",
  };
  const INITIAL = {
    fill: "#000000", "fill-opacity": "1", "fill-rule": "nonzero", stroke: "none", "stroke-opacity": "1",
    "stroke-width": "1", "stroke-dasharray": "none", "stroke-linecap": "butt", "stroke-linejoin": "miter",
    opacity: "1", "paint-order": "normal", visibility: "visible", "text-anchor": "start",
    "dominant-baseline": "auto",
  };
  const FONT = ["font-family", "font-size", "font-weight", "font-style"];

  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();

  /** Any CSS colour as {color: "#rrggbb", alpha}: other programs know no color-mix() or oklab(). */
  function plain(css) {
    if (!known.has(css)) {
      context.clearRect(0, 0, 1, 1);
      context.fillStyle = css;
      context.fillRect(0, 0, 1, 1);
      const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
      const hex = [red, green, blue].map((part) => part.toString(16).padStart(2, "0")).join("");
      known.set(css, { color: `#${hex}`, alpha: alpha / 255 });
    }
    return known.get(css);
  }

  function node(tag, attributes, ...children) {
    const made = document.createElementNS(NAMESPACE, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const round = (value) => Math.round(value * 100) / 100;

  function setFont(made, style) {
    for (const name of FONT) made.setAttribute(name, style.getPropertyValue(name));
    const family = style.fontFamily;
    if (!/serif|monospace/.test(family.split(",").at(-1))) made.setAttribute("font-family", `${family}, sans-serif`);
  }

  /** A copy of an SVG element with its computed styles as attributes. */
  function copied(original) {
    const style = getComputedStyle(original);
    if (style.display === "none" && original.localName !== "defs") return null;
    const made = node(original.localName, {});
    for (const { name, value } of original.attributes) {
      if (!/^(class|style|tabindex|role|on.*|data-.*|aria-.*)$/.test(name)) made.setAttribute(name, value);
    }
    for (const [name, initial] of Object.entries(INITIAL)) {
      let value = style.getPropertyValue(name);
      if ((name === "fill" || name === "stroke") && value !== "none" && !value.startsWith("url(")) {
        const { color, alpha } = plain(value);
        value = color;
        const opacity = alpha * Number(style.getPropertyValue(`${name}-opacity`));
        if (opacity < 1) made.setAttribute(`${name}-opacity`, round(opacity));
      } else if (name.endsWith("-opacity")) continue;
      // Children would inherit what a group says, but each says its own in any case.
      if (value !== initial) made.setAttribute(name, value.replace(/^(-?[\d.]+)px$/, "$1"));
      else if (name !== "opacity") made.removeAttribute(name);
    }
    if (["text", "tspan"].includes(original.localName)) setFont(made, style);
    for (const child of original.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) made.append(child.data);
      else if (child.nodeType === Node.ELEMENT_NODE) made.append(...[copied(child)].filter(Boolean));
    }
    return made;
  }

  /** The words of a text node, each line at its place. */
  function lines(text, style, origin) {
    const found = [];
    const range = document.createRange();
    for (const { index, 0: word } of text.data.matchAll(/\S+/g)) {
      range.setStart(text, index);
      range.setEnd(text, index + word.length);
      const box = range.getBoundingClientRect();
      if (box.width === 0) continue;
      const last = found.at(-1);
      if (last && Math.abs(last.top - box.top) < 2) last.words += ` ${word}`;
      else found.push({ words: word, left: box.left, top: box.top });
    }
    context.font = `${style.fontStyle} ${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
    const { fontBoundingBoxAscent: ascent } = context.measureText("x");
    const { color, alpha } = plain(style.color);
    return found.map(({ words, left, top }) => {
      const made = node("text", { x: round(left - origin.left), y: round(top - origin.top + ascent), fill: color });
      if (alpha < 1) made.setAttribute("fill-opacity", round(alpha));
      setFont(made, style);
      made.textContent = words;
      return made;
    });
  }

  function box(style, place, origin) {
    const background = plain(style.backgroundColor);
    const x = place.left - origin.left;
    const y = place.top - origin.top;
    const made = [];
    const sides = ["Top", "Right", "Bottom", "Left"].map((side) => ({
      width: style[`border${side}Style`] === "none" ? 0 : parseFloat(style[`border${side}Width`]),
      ...plain(style[`border${side}Color`]),
    }));
    const even = sides.every(({ width, color }) => width === sides[0].width && color === sides[0].color);
    const inset = even ? sides[0].width / 2 : 0;
    if (background.alpha > 0 || (even && sides[0].width > 0 && sides[0].alpha > 0)) {
      made.push(node("rect", {
        x: round(x + inset), y: round(y + inset), rx: Math.min(parseFloat(style.borderTopLeftRadius) || 0, place.height / 2),
        width: round(Math.max(0, place.width - 2 * inset)), height: round(Math.max(0, place.height - 2 * inset)),
        fill: background.alpha > 0 ? background.color : "none", "fill-opacity": round(background.alpha),
        ...(inset > 0 && sides[0].alpha > 0
          ? { stroke: sides[0].color, "stroke-width": sides[0].width, "stroke-opacity": round(sides[0].alpha) } : {}),
      }));
    }
    if (!even) {
      const [left, top, right, bottom] = [x, y, x + place.width, y + place.height].map(round);
      const ends = [[left, top, right, top], [right, top, right, bottom], [left, bottom, right, bottom], [left, top, left, bottom]];
      sides.forEach(({ width, color, alpha }, side) => {
        if (width === 0 || alpha === 0) return;
        const [x1, y1, x2, y2] = ends[side];
        made.push(node("line", { x1, y1, x2, y2, stroke: color, "stroke-width": width, "stroke-opacity": round(alpha) }));
      });
    }
    return made;
  }

  /** The element and all in it, from the back to the front. */
  function drawn(element, origin, clips) {
    const style = getComputedStyle(element);
    const place = element.getBoundingClientRect();
    if (style.display === "none" || style.visibility === "hidden" || element.matches("style, button")) return [];
    if (element.localName === "svg") {
      const made = copied(element);
      made.setAttribute("x", round(place.left - origin.left));
      made.setAttribute("y", round(place.top - origin.top));
      made.setAttribute("width", round(place.width));
      made.setAttribute("height", round(place.height));
      made.setAttribute("overflow", style.overflow === "visible" ? "visible" : "hidden");
      return [made];
    }
    const parts = box(style, place, origin);
    const inner = [];
    for (const child of element.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) inner.push(...lines(child, style, origin));
      else if (child.nodeType === Node.ELEMENT_NODE) inner.push(...drawn(child, origin, clips));
    }
    if (style.overflow === "visible" || element.matches(".bf") || inner.length === 0) parts.push(...inner);
    else {
      const id = `clip-${clips.length}`;
      clips.push(node("clipPath", { id }, node("rect", {
        x: round(place.left - origin.left), y: round(place.top - origin.top),
        width: round(place.width), height: round(place.height),
      })));
      parts.push(node("g", { "clip-path": `url(#${id})` }, ...inner));
    }
    return style.opacity === "1" ? parts : [node("g", { opacity: style.opacity }, ...parts)];
  }

  /** A figure's root as the text of an SVG file. */
  function drawing(root) {
    // A copy, so that leaving out the controls moves nothing on the page and takes no focus away.
    const copy = root.cloneNode(true);
    copy.querySelectorAll(LEFT_OUT).forEach((part) => part.remove());
    copy.querySelectorAll("[role], [aria-live]").forEach((part) => {
      part.removeAttribute("role");
      part.removeAttribute("aria-live");
    });
    copy.inert = true;
    for (const [name, value] of Object.entries(LIGHT)) copy.style.setProperty(name, value);
    Object.assign(copy.style, { position: "absolute", left: "-10000px", top: "0", width: `${root.offsetWidth}px`, margin: "0" });
    root.after(copy);
    try {
      const origin = copy.getBoundingClientRect();
      const clips = [];
      const parts = drawn(copy, origin, clips);
      const [width, height] = [round(origin.width), round(origin.height)];
      const words = root.querySelector("[role=status]")?.textContent ?? "";
      const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" },
        node("title", {}, root.getAttribute("aria-label")), node("desc", {}, words),
        node("defs", {}, ...clips), ...parts);
      // Patterns are for the whole file: some figures keep them in an SVG of no size.
      svg.querySelectorAll("svg defs").forEach((defs) => svg.querySelector("defs").append(...defs.childNodes));
      return new XMLSerializer().serializeToString(svg);
    } finally {
      copy.remove();
    }
  }

  function save(root, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([drawing(root)], { type: "image/svg+xml" }));
    link.download = `${name}.svg`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  globalThis.bookDrawing = { save };
})();
