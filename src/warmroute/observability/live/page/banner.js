// The first two rows: what is wrong, and the figures of the whole fleet.

const HISTORY_POINTS = 60;

function tile(label, hint, ...parts) {
  const value = element("strong", {}, NOTHING);
  const detail = element("span", { className: "detail" });
  const node = element("div", { className: "tile", title: hint }, element("h2", {}, label), value, ...parts, detail);
  return { node, value, detail };
}

function makeBanner(root, noticesRoot) {
  const requestsLine = sparkline("requests", HISTORY_POINTS);
  const requests = tile("Requests per second", "Requests answered, mean of ten seconds; the line shows five minutes", requestsLine);
  const hitBar = element("span", { className: "compare" }, element("i", { className: "chosen" }), element("i", { className: "random" }));
  const hits = tile("Prompt tokens cached", "Share of the last minute's prompt tokens that the chosen engines held, as expected", hitBar);
  const saved = tile("Prefill saved vs random", "Prefill tokens per second that the engines need not compute, compared with a random choice among the same engines");
  const pick = tile("Pick, p99", "Time to match the prompt and to choose the engine, of the last minute");
  const errors = tile("Errors", "Requests answered with an error by the picker, of the last minute");
  const engines = tile("Engines ready", "Engines that can be chosen");
  root.append(...[requests, hits, saved, pick, errors, engines].map((each) => each.node));
  let notices = "";

  function showNotices(list) {
    const key = JSON.stringify(list);
    if (key === notices) return;
    notices = key;
    noticesRoot.replaceChildren(...list.map((notice) => element("p", { className: notice.level }, notice.text)));
    document.body.dataset.level = list[0].level;
  }

  function show(live) {
    const traffic = live.traffic;
    showNotices(live.notices);
    setText(requests.value, rate(traffic.requests_per_second));
    setText(hits.value, percent(traffic.hit_ratio));
    hitBar.hidden = traffic.hit_ratio === null;
    hitBar.children[0].style.width = `${100 * (traffic.hit_ratio ?? 0)}%`;
    hitBar.children[1].style.left = `${100 * (traffic.random_hit_ratio ?? 0)}%`;
    setText(hits.detail, traffic.hit_ratio === null ? "too few prompts in the last minute" : `random choice: ${percent(traffic.random_hit_ratio)}`);
    setText(saved.value, traffic.saved_tokens_per_second === null ? NOTHING : short(traffic.saved_tokens_per_second));
    const ttft = traffic.held_out_ttft_seconds === null ? "" : `; TTFT ${seconds(traffic.predicted_ttft_seconds)}, held out ${seconds(traffic.held_out_ttft_seconds)}`;
    setText(saved.detail, `tokens/s${ttft}`);
    setText(pick.value, seconds(traffic.pick_p99_seconds));
    setText(pick.detail, "to choose an engine");
    setText(errors.value, traffic.errors_per_second ? rate(traffic.errors_per_second) : "0");
    setText(errors.detail, traffic.error_share ? `per second, ${(100 * traffic.error_share).toFixed(1)} % of requests` : "in the last minute");
    setClass(errors.node, traffic.error_share > 0.05 ? "tile critical" : traffic.error_share > 0 ? "tile warning" : "tile");
    const states = Object.entries(live.states).filter(([state, n]) => n && state !== "gone");
    const all = states.reduce((sum, [, n]) => sum + n, 0);
    const ready = live.states.ready ?? 0;
    setText(engines.value, `${ready} of ${all}`);
    const others = states.filter(([state]) => state !== "ready").map(([state, n]) => `${n} ${state}`);
    setText(engines.detail, others.join(", ") || "all of them");
    setClass(engines.node, !ready ? "tile critical" : ready < all ? "tile warning" : "tile");
  }

  return { show, showHistory: (history) => requestsLine.show(history.requests_per_second) };
}
