// What the HTML standard calls a parse error, in each of the files named: JSON {file: ["code line:column"]}.
import { readFileSync } from "node:fs";
import { parse } from "parse5";

const found = {};
for (const file of process.argv.slice(2)) {
  found[file] = [];
  parse(readFileSync(file, "utf-8"), {
    onParseError: ({ code, startLine, startCol }) =>
      found[file].push(`${code} ${startLine}:${startCol}`),
  });
}
process.stdout.write(JSON.stringify(found));
