// Which engines hold which shared beginnings of prompts: one row a prefix, one column an engine.

const CELL = 12;
const NAMED_COLUMNS = 8; // up to here the columns have names

function makePrefixes(root) {
  const pointed = element("span", { className: "detail" });
  const head = element("thead");
  const body = element("tbody");
  const table = element("table", {}, head, body);
  const empty = element("p", { className: "empty" }, "No prompt beginning of 1,000 tokens or more is shared by several recent requests.");
  root.append(element("h2", { title: "The longest beginnings that several recent prompts have in common, named by a keyed hash" }, "Shared prefixes ", pointed), element("div", { className: "scroll" }, table), empty);
  let names = [];

  function draw(prefixes) {
    const width = Math.max(1, names.length) * CELL;
    const mostRate = Math.max(...prefixes.map((prefix) => prefix.requests_per_second), 0);
    head.replaceChildren(
      element("tr", {}, element("th", {}, "Prefix"), element("th", {}, "Tokens"), element("th", {}, "Requests/s"), element("th", {}, "Copies"), element("th", { className: "columns" }, columnHeads())),
    );
    body.replaceChildren(
      ...prefixes.map((prefix) => {
        const share = bar("rate");
        share.show(mostRate ? prefix.requests_per_second / mostRate : 0);
        return element(
          "tr",
          {},
          element("td", {}, element("code", {}, prefix.name)),
          element("td", { className: "number" }, short(prefix.tokens)),
          element("td", { className: "measure" }, share, element("span", {}, rate(prefix.requests_per_second))),
          element("td", { className: "number" }, String(prefix.holders.length)),
          element("td", { className: "cells" }, cells(prefix, width)),
        );
      }),
    );
  }

  function columnHeads() {
    if (names.length > NAMED_COLUMNS) return element("span", {}, `${names.length} engines`);
    return element("div", { className: "names" }, ...names.map((name) => element("span", {}, nameOf(name))));
  }

  // The row of squares: all of them in one path, those that hold the prefix in another.
  function cells(prefix, width) {
    const squares = (places) => places.map((k) => `M${k * CELL + 0.75} 0.75h${CELL - 1.5}v${CELL - 1.5}h${1.5 - CELL}z`).join("");
    const node = svgElement("svg", { viewBox: `0 0 ${width} ${CELL}`, preserveAspectRatio: "none", class: "cells" });
    node.append(svgElement("path", { class: "all", d: squares(names.map((_, k) => k)) }), svgElement("path", { class: "held", d: squares(prefix.holders) }));
    node.addEventListener("mousemove", (event) => {
      const place = Math.floor((event.offsetX / node.clientWidth) * names.length);
      if (names[place] !== undefined) setText(pointed, `${prefix.name} ${prefix.holders.includes(place) ? "is held by" : "is not on"} ${names[place]}`);
    });
    node.addEventListener("mouseleave", () => setText(pointed, ""));
    return node;
  }

  return {
    show(live) {
      const engines = live.engines.rows.map((row) => row[0]);
      names = engines;
      table.hidden = !live.prefixes.length;
      empty.hidden = !table.hidden;
      root.classList.toggle("many", names.length > NAMED_COLUMNS);
      if (!root.matches(":hover") || !body.children.length) draw(live.prefixes);
    },
  };
}
