// One row an engine, and one square an engine where there are many.

const MOST_ROWS = 200;
const FEW = 12; // up to here rows stay in the order of their names, beyond it the worst come first
const RESORT_SECONDS = 5;
const SEVERITY = { unreachable: 0, ejected: 1, sleeping: 3, gone: 4 };
const GLYPH = { ready: "●", unreachable: "✕", ejected: "▲", sleeping: "☾", gone: "○" };

// The rows of the document as objects by column.
function enginesOf(live) {
  const columns = live.engines.columns;
  return live.engines.rows.map((row) => Object.fromEntries(columns.map((name, k) => [name, row[k]])));
}

// Seconds of queue at which an engine's colour changes.
const HEAT = [0.01, 0.1, 0.5, 2, 8];

function heat(engine) {
  if (engine.state !== "ready") return engine.state;
  return `heat-${HEAT.filter((step) => engine.queue_seconds >= step).length}`;
}

const byName = (a, b) => a.endpoint.localeCompare(b.endpoint, "en", { numeric: true });
const severity = (engine) => SEVERITY[engine.state] ?? 2;
const ORDERS = {
  engine: byName,
  state: (a, b) => severity(a) - severity(b) || b.queue_seconds - a.queue_seconds,
  waiting: (a, b) => b.waiting - a.waiting,
  running: (a, b) => b.running - a.running,
  queue: (a, b) => b.queue_seconds - a.queue_seconds,
  kv: (a, b) => b.kv_usage - a.kv_usage,
  hits: (a, b) => b.expected_hit_ratio - a.expected_hit_ratio,
  share: (a, b) => b.share_of_picks - a.share_of_picks,
};
const COLUMNS = [
  ["engine", "Engine", "", "Name and state; ↻ and the number of restarts since it joined, each with an empty cache"],
  ["waiting", "Waiting", "picker / engine", "Requests without a first token: as the picker counts / as the engine reports"],
  ["running", "Running", "picker / engine", "Requests that are being decoded: as the picker counts / as the engine reports"],
  ["queue", "Queue", "", "Time to compute the prompts that wait"],
  ["kv", "KV cache", "", "KV cache blocks that running requests use"],
  ["hits", "Cached", "expected / measured", "Prompt tokens found in the cache: expected / measured, of the last window of 20 prompts and 50,000 tokens"],
  ["share", "Picks", "", "Share of the last minute's requests"],
  [null, "In flight, 5 min", "", "Requests in flight, all engines on one scale"],
];

function makeRow() {
  const glyph = element("span", { className: "glyph" });
  const name = element("span", { className: "name" });
  const pair = () => {
    const own = element("b");
    const reported = element("span", { className: "reported" });
    return { own, reported, cell: element("td", { className: "pair" }, own, reported) };
  };
  const [waiting, running, hits] = [pair(), pair(), pair()];
  const measure = (className) => {
    const shape = bar(className);
    const text = element("span");
    return { shape, text, cell: element("td", { className: "measure" }, shape, text) };
  };
  const [queue, kv, share] = [measure("queue"), measure("kv"), measure("share")];
  const restarts = element("span", { className: "restarts" });
  const line = sparkline("load", HISTORY_POINTS);
  const node = element("tr", {}, element("td", { className: "engine" }, glyph, name, restarts), waiting.cell, running.cell, queue.cell, kv.cell, hits.cell, share.cell, element("td", { className: "history" }, line));

  function show(engine, mostShare) {
    setClass(node, `${engine.state} ${heat(engine)}`);
    setText(glyph, GLYPH[engine.state] ?? "?");
    setText(name, nameOf(engine.endpoint));
    const known = engine.scrape_age_seconds === null ? "no metrics page yet" : `metrics ${age(engine.scrape_age_seconds)} old`;
    setTitle(node, `${engine.endpoint} · ${engine.target} · ${engine.engine} · ${engine.state} · ${known} · slowness ${engine.slowness}`);
    setText(waiting.own, count(engine.waiting));
    setText(waiting.reported, count(engine.engine_waiting));
    setText(running.own, count(engine.running));
    setText(running.reported, count(engine.engine_running));
    queue.shape.show(Math.log1p(10 * engine.queue_seconds) / Math.log1p(100));
    setText(queue.text, seconds(engine.queue_seconds));
    kv.shape.show(engine.kv_usage ?? 0);
    setText(kv.text, percent(engine.kv_usage));
    setText(hits.own, percent(engine.expected_hit_ratio));
    setText(hits.reported, percent(engine.measured_hit_ratio));
    share.shape.show(mostShare ? engine.share_of_picks / mostShare : 0);
    setText(share.text, percent(engine.share_of_picks));
    setText(restarts, engine.restarts ? ` ↻ ${engine.restarts}` : "");
  }

  return { node, show, line };
}

function makeEngines(root, fleetRoot) {
  const filter = element("input", { type: "search", placeholder: "name or state", "aria-label": "Filter engines", input: () => redraw() });
  const more = element("span", { className: "detail" });
  const body = element("tbody");
  const heads = new Map();
  const head = element("tr");
  for (const [key, label, parts, hint] of COLUMNS) {
    const button = key === null ? element("span", {}, label) : element("button", { type: "button", click: () => sortBy(key) }, label);
    heads.set(key, button);
    head.append(element("th", { title: hint, scope: "col" }, button, element("small", {}, parts)));
  }
  root.append(
    element("h2", {}, "Engines ", more, filter),
    element("div", { className: "scroll" }, element("table", {}, element("thead", {}, head), body)),
  );
  const grid = element("div", { className: "squares" });
  const scale = element("p", { className: "scale" }, "Queue:");
  HEAT.forEach((step, k) => scale.append(element("span", { className: `heat-${k}` }, `under ${step < 1 ? seconds(step) : `${step} s`}`)));
  scale.append(element("span", { className: `heat-${HEAT.length}` }, "longer"));
  for (const state of ["unreachable", "ejected", "sleeping"]) scale.append(element("span", { className: "state" }, `${GLYPH[state]} ${state}`));
  fleetRoot.append(grid, scale);
  const rows = new Map();
  const squares = new Map();
  let engines = [];
  let history = {};
  let mostInFlight = 1;
  let order = null;
  let sorted = [];
  let sortedAt = 0;

  function sortBy(key) {
    order = order === key ? null : key;
    for (const [name, button] of heads) button.classList.toggle("sorted", name === order);
    sortedAt = 0;
    redraw();
  }

  function sort() {
    const now = performance.now();
    const names = new Set(engines.map((engine) => engine.endpoint));
    const changed = names.size !== sorted.length || sorted.some((name) => !names.has(name));
    if (!changed && now - sortedAt < RESORT_SECONDS * 1000) return;
    sortedAt = now;
    const compare = ORDERS[order ?? (engines.length > FEW ? "state" : "engine")];
    sorted = [...engines].sort((a, b) => compare(a, b) || byName(a, b)).map((engine) => engine.endpoint);
  }

  function redraw() {
    sort();
    const wanted = filter.value.trim().toLowerCase();
    const byId = new Map(engines.map((engine) => [engine.endpoint, engine]));
    const matching = sorted.map((name) => byId.get(name)).filter((e) => !wanted || e.state === wanted || e.endpoint.toLowerCase().includes(wanted));
    const shown = matching.slice(0, MOST_ROWS);
    setText(more, matching.length > shown.length ? `${shown.length} of ${matching.length} shown` : "");
    const mostShare = Math.max(...engines.map((engine) => engine.share_of_picks), 0);
    const kept = new Set(shown.map((engine) => engine.endpoint));
    for (const [name, row] of rows) {
      if (!kept.has(name)) {
        row.node.remove();
        rows.delete(name);
      }
    }
    shown.forEach((engine, place) => {
      let row = rows.get(engine.endpoint);
      if (row === undefined) {
        row = makeRow();
        row.line.show(history[engine.endpoint] ?? [], mostInFlight);
        rows.set(engine.endpoint, row);
      }
      row.show(engine, mostShare);
      if (body.children[place] !== row.node) body.insertBefore(row.node, body.children[place] ?? null);
    });
    root.classList.toggle("many", engines.length > FEW);
    drawFleet();
  }

  function drawFleet() {
    fleetRoot.hidden = engines.length <= FEW;
    if (fleetRoot.hidden) return;
    const listed = [...engines].sort(byName);
    const kept = new Set(listed.map((engine) => engine.endpoint));
    for (const [name, square] of squares) {
      if (!kept.has(name)) {
        square.remove();
        squares.delete(name);
      }
    }
    listed.forEach((engine, place) => {
      let square = squares.get(engine.endpoint);
      if (square === undefined) {
        square = element("span");
        squares.set(engine.endpoint, square);
      }
      setClass(square, heat(engine));
      setText(square, engine.state === "ready" ? "" : GLYPH[engine.state] ?? "?");
      setTitle(square, `${engine.endpoint}: ${engine.state}, queue ${seconds(engine.queue_seconds)}, ${count(engine.waiting + engine.running)} in flight`);
      if (grid.children[place] !== square) grid.insertBefore(square, grid.children[place] ?? null);
    });
  }

  return {
    show(live) {
      engines = enginesOf(live);
      redraw();
    },
    showHistory(given) {
      history = given.in_flight;
      mostInFlight = Math.max(1, ...Object.values(history).flat());
      for (const [name, row] of rows) row.line.show(history[name] ?? [], mostInFlight);
    },
  };
}
