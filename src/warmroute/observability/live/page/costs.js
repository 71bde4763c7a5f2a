// The cost of each candidate of a decision as stacked bars: what the request would add for all requests, in time.

function costsOf(decision) {
  const endpoints = decision.endpoints;
  const list = element("div", { className: "costs" });
  if (endpoints[0]?.terms_ms === undefined) {
    for (const each of endpoints) {
      list.append(element("p", {}, element("b", {}, nameOf(each.endpoint)), ` ${decision.strategy.split("/").pop()} gives it ${each.value}${each.left_out ? ", left out" : ""}; ${short(each.cached_tokens)} tokens cached`));
    }
    return list;
  }
  const rounded = decision.rounded_to > 1;
  const most = Math.max(...endpoints.map((each) => each.cost_ms), 1e-9);
  const terms = Object.keys(endpoints[0].terms_ms).filter((term) => endpoints.some((each) => each.terms_ms[term] > most / 1000));
  for (const each of endpoints) {
    const stack = element("span", { className: "stack" });
    terms.forEach((term, k) => {
      const part = element("i", { className: `term-${k % 8}`, title: `${term}: ${milliseconds(each.terms_ms[term])}` });
      part.style.width = `${(100 * Math.max(0, each.terms_ms[term])) / most}%`;
      stack.append(part);
    });
    const chosen = each.endpoint === decision.chosen;
    list.append(
      element(
        "div",
        { className: chosen ? "candidate chosen" : "candidate" },
        element("b", {}, `${chosen ? "→ " : ""}${nameOf(each.endpoint)}`),
        stack,
        element("span", { className: "number" }, (rounded ? "≤ " : "") + milliseconds(each.cost_ms)),
        element("span", { className: "detail" }, `${short(each.cached_tokens)} cached, ${count(each.waiting)} waiting, ${count(each.running)} running${each.left_out ? ", left out" : ""}`),
      ),
    );
  }
  const legend = element("p", { className: "legend" });
  terms.forEach((term, k) => legend.append(element("span", {}, element("i", { className: `term-${k % 8}` }), term)));
  if (rounded) legend.append(element("span", {}, `at most: cached tokens are rounded down to a multiple of ${count(decision.rounded_to)}`));
  if (rounded && decision.reason !== "state" && endpoints.some((each) => each.cost_ms < endpoints[0].cost_ms)) {
    legend.append(element("span", {}, "an endpoint that shows a lower cost costs more or was left out"));
  }
  const others = decision.candidates - endpoints.length;
  if (others > 0) legend.append(element("span", {}, `and ${others} more candidates`));
  list.append(legend);
  return list;
}
