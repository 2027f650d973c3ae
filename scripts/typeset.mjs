// Sets formulas: {fonts, formulas: [[TeX, whether it is displayed], …]} comes in as JSON, and
// {css, html: […]} goes out.
import { readFileSync } from "node:fs";
import mathjax from "mathjax";

const { fonts, formulas } = JSON.parse(readFileSync(0, "utf-8"));
const MathJax = await mathjax.init({
  // The hidden MathML is what a screen reader reads.
  loader: { load: ["input/tex", "output/chtml", "a11y/assistive-mml"] },
  chtml: { fontURL: fonts },
  startup: { typeset: false },
});
const adaptor = MathJax.startup.adaptor;
const html = [];
for (const [tex, display] of formulas) {
  html.push(adaptor.outerHTML(await MathJax.tex2chtmlPromise(tex, { display })));
}
const css = adaptor.textContent(MathJax.chtmlStylesheet());
process.stdout.write(JSON.stringify({ css, html }));
