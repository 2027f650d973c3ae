// Mounts every <div class="book-figure" data-figure data-state> of a page that has no kernel.
// A classic script, not a module: browsers refuse modules from file://, and the built book is
// meant to open from a folder too.
(() => {
  const here = document.currentScript.src;

  /** The part of a notebook widget's model that a figure may use, kept in the page. */
  class PageModel {
    #state;
    #listeners = {};
    constructor(state) { this.#state = { ...state }; }
    get(key) { return this.#state[key]; }
    set(key, value) {
      if (this.#state[key] === value) return;
      this.#state[key] = value;
      this.#tell(key);
    }
    /** All of `values` at once, so that no listener sees half of them. */
    assign(values) {
      const changed = Object.keys(values).filter((key) => this.#state[key] !== values[key]);
      Object.assign(this.#state, values);
      changed.forEach((key) => this.#tell(key));
      // A figure may answer one change with another: a new run starts at its first step.
      Object.entries(values).forEach(([key, value]) => this.set(key, value));
    }
    #tell(key) { (this.#listeners[`change:${key}`] ?? []).forEach((listener) => listener()); }
    save_changes() {}
    on(event, listener) { (this.#listeners[event] ??= []).push(listener); }
    off(event, listener) {
      this.#listeners[event] = (this.#listeners[event] ?? []).filter((known) => known !== listener);
    }
  }

  const loading = {};

  /** "_shared", a figure's name or "save_drawing": the script beside this one, once. */
  function load(name) {
    loading[name] ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = new URL(`./${name}.js`, here).href;
      script.async = false; // scripts that are loaded together run in the order they were asked for
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${name}.js did not load from ${script.src}`));
      document.head.append(script);
    });
    return loading[name];
  }

  // ---- links: page.html#figure=TileStepper.2&step=3 is that page's second tile stepper at step 3

  /** What the address asks for, or null if it is no link to a figure. */
  function requested() {
    if (!location.hash.startsWith("#figure=")) return null;
    return new URLSearchParams(location.hash.slice(1));
  }

  /** "TileStepper", "TileStepper.2": the figure's class, and which of that class on this page. */
  function linkName(element) {
    const { figure } = element.dataset;
    const alike = [...document.querySelectorAll(".book-figure")].filter((other) => other.dataset.figure === figure);
    const place = alike.indexOf(element) + 1;
    const { name } = globalThis.bookFigures[figure].link;
    return place === 1 ? name : `${name}.${place}`;
  }

  /** The value that a link's text stands for, or undefined where the figure has no such value. */
  function fitting(text, { values, namesOf, largest, shortest, longest, low, high }, state) {
    if (values) return values.find((value) => String(value) === text);
    if (namesOf) return state[namesOf].map(({ name }) => name).find((name) => name === text);
    if (largest) {
      const parts = text.split(",");
      const known = parts.every((part) => part === "-inf" || /^-?\d/.test(part) && Number.isFinite(Number(part)));
      if (!known || parts.length < shortest || parts.length > longest) return undefined;
      return parts.map((part) =>
        part === "-inf" ? null : Math.max(-largest, Math.min(largest, Number(part))));
    }
    if (!/^-?\d{1,15}$/.test(text)) return undefined;
    return Math.max(low, Math.min(high ?? Number.MAX_SAFE_INTEGER, Number(text)));
  }

  /** The state with what the link says about it; what does not fit is passed over. */
  function asLinked(query, traits, state) {
    const next = { ...state };
    for (const [key, trait] of Object.entries(traits)) {
      const value = query.has(key) ? fitting(query.get(key), trait, state) : undefined;
      if (value !== undefined) next[key] = value;
    }
    for (const [key, { values, orThatOf }] of Object.entries(traits)) {
      if (!orThatOf) continue;
      const text = query.get(key) ?? String(next[key]);
      next[key] = values.find((value) => String(value) === text) ?? next[orThatOf];
    }
    return next;
  }

  function linkTo(element, model) {
    const query = new URLSearchParams({ figure: linkName(element) });
    for (const key of Object.keys(globalThis.bookFigures[element.dataset.figure].link.traits)) {
      const value = model.get(key);
      query.set(key, Array.isArray(value) ? value.map((one) => one ?? "-inf").join(",") : value);
    }
    const address = new URL(location.href);
    address.hash = query;
    return address.href;
  }

  /** A button that copies the link; where the page may not, a field with the link, selected. */
  function addLinkButton(element, model) {
    const { htmlNode, figureTools } = globalThis.bookShared;
    const button = htmlNode("button", {
      type: "button", class: "bf-tool", "data-tool": "link", "aria-label": "Link to this state: copy", text: "Link",
    });
    const says = htmlNode("span", { class: "bf-hidden", "aria-live": "polite" });
    const field = htmlNode("input", {
      class: "bf-link", type: "text", readonly: "", "aria-label": "Link to this state",
    });
    let timer = null;
    function say(words, face) {
      clearTimeout(timer);
      says.textContent = words;
      button.textContent = face;
      timer = setTimeout(() => { says.textContent = ""; button.textContent = "Link"; }, 3000);
    }
    button.addEventListener("click", async () => {
      const link = linkTo(element, model);
      try {
        await navigator.clipboard.writeText(link);
        say("Link copied.", "Copied");
      } catch {
        field.value = link;
        element.querySelector(".bf-title").append(field);
        field.focus();
        field.select();
        say("Copy the selected link.", "Link");
      }
    });
    field.addEventListener("blur", () => field.remove());
    field.addEventListener("keydown", (event) => { if (event.key === "Escape") button.focus(); });
    figureTools(element.querySelector(".bf")).append(button, says);
  }

  /** A button that saves what the figure shows as one SVG file. */
  function addSaveButton(element) {
    const { htmlNode, figureTools } = globalThis.bookShared;
    const root = element.querySelector(".bf");
    const button = htmlNode("button", {
      type: "button", class: "bf-tool", "data-tool": "svg", "aria-label": "SVG file of this state: save", text: "SVG",
    });
    button.addEventListener("click", async () => {
      await load("save_drawing");
      globalThis.bookDrawing.save(root, linkName(element));
    });
    figureTools(root).append(button);
  }

  const models = new Map();

  async function mount(element) {
    const name = element.dataset.figure;
    await Promise.all([load("_shared"), load(name)]);
    const figure = globalThis.bookFigures[name];
    const alternative = element.querySelector(".book-figure-alternative");
    const model = new PageModel(JSON.parse(element.dataset.state));
    models.set(element, model);
    const query = requested();
    if (query && isAbout(query, element)) model.assign(stateFrom(query, element));
    figure.render({ model, el: element });
    alternative.remove();
    addLinkButton(element, model);
    addSaveButton(element);
    element.dataset.mounted = "yes";
  }

  const isAbout = (query, element) => [linkName(element), `${linkName(element)}.1`].includes(query.get("figure"));

  function stateFrom(query, element) {
    const { traits } = globalThis.bookFigures[element.dataset.figure].link;
    const known = JSON.parse(element.dataset.state);
    const model = models.get(element);
    const state = Object.fromEntries(Object.keys(known).map((key) => [key, model.get(key)]));
    return asLinked(query, traits, state);
  }

  /** Scrolls to the figure that the address asks for, if there is one, and gives it the focus. */
  function show(element) {
    for (let folded = element.closest("details:not([open])"); folded; folded = element.closest("details:not([open])")) {
      folded.open = true;
    }
    const root = element.querySelector(".bf");
    root.tabIndex = -1;
    root.focus({ preventScroll: true });
    root.scrollIntoView();
  }

  function linked() {
    const query = requested();
    return query && [...models.keys()].find((element) => isAbout(query, element));
  }

  const mounted = Promise.all([...document.querySelectorAll(".book-figure")].map(mount));
  const loaded = new Promise((resolve) => {
    if (document.readyState === "complete") resolve();
    else addEventListener("load", resolve);
  });

  async function showFirst() {
    await Promise.all([mounted, loaded]);
    await globalThis.MathJax?.startup?.promise; // formulas above the figure move it
    if (linked()) show(linked());
  }
  showFirst();

  addEventListener("hashchange", async () => {
    await mounted;
    const element = linked();
    if (!element) return;
    models.get(element).assign(stateFrom(requested(), element));
    show(element);
  });
})();
