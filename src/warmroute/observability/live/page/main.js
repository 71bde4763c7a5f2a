// Puts the parts together.

const part = (id) => document.getElementById(id);
makeTheme(part("theme"));
const banner = makeBanner(part("banner"), part("notices"));
const engines = makeEngines(part("engines"), part("fleet"));
const prefixes = makePrefixes(part("prefixes"));
const decisions = makeDecisions(part("decisions"));
makeDryRun(part("dry-run"));

follow(
  (live) => {
    const about = live.picker;
    setText(part("about"), [about.pool, about.strategy, `version ${about.version}`, `up ${age(live.uptime_seconds)}`].filter(Boolean).join(" · "));
    setText(part("connection"), "live");
    delete document.body.dataset.lost;
    banner.show(live);
    engines.show(live);
    prefixes.show(live);
    decisions.show(live);
  },
  (history) => {
    banner.showHistory(history);
    engines.showHistory(history);
  },
  (reason) => {
    setText(part("connection"), `no data: ${reason}`);
    document.body.dataset.lost = "";
  },
);
