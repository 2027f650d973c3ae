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
      (this.#listeners[`change:${key}`] ?? []).forEach((listener) => listener());
    }
    save_changes() {}
    on(event, listener) { (this.#listeners[event] ??= []).push(listener); }
    off(event, listener) {
      this.#listeners[event] = (this.#listeners[event] ?? []).filter((known) => known !== listener);
    }
  }

  const loading = {};

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

  async function mount(element) {
    const name = element.dataset.figure;
    await Promise.all([load("_shared"), load(name)]);
    const figure = globalThis.bookFigures[name];
    const alternative = element.querySelector(".book-figure-alternative");
    figure.render({ model: new PageModel(JSON.parse(element.dataset.state)), el: element });
    alternative.remove();
    element.dataset.mounted = "yes";
  }

  document.querySelectorAll(".book-figure").forEach(mount);
})();
