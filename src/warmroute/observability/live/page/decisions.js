// The stream of decisions: newest first, with filters, a pause, and the costs on a click.

const MOST_SHOWN = 40;
const REASONS = ["warm", "partial", "spread", "cold", "no-prompt", "state"];
const MEANING = {
  warm: "The engine holds most of the prompt",
  partial: "The engine holds some of the prompt",
  spread: "Another engine holds more, but costs more or was left out",
  cold: "No engine is known to hold 1,024 tokens or more of the prompt",
  "no-prompt": "There is no prompt to look for",
  state: "The engine keeps what the request goes on with",
};

function makeDecisions(root) {
  const input = (name, placeholder) => element("input", { type: "search", name, placeholder, "aria-label": placeholder, input: changed });
  const fields = [input("request", "request id"), input("model", "model"), input("endpoint", "engine")];
  const reason = element("select", { name: "reason", "aria-label": "Reason", change: changed }, element("option", { value: "" }, "any reason"));
  for (const name of REASONS) reason.append(element("option", { value: name, title: MEANING[name] }, name));
  const pause = element("button", { type: "button", click: () => setPaused(!paused) }, "Pause");
  const state = element("span", { className: "detail" });
  const list = element("ol", { className: "decisions" });
  root.append(element("h2", {}, "Decisions ", state, pause), element("form", { className: "filters", submit: (event) => event.preventDefault() }, ...fields, reason), list);
  const shown = new Map();
  let paused = false;
  let asking = false;

  function setPaused(value) {
    paused = value;
    setText(pause, paused ? "Resume" : "Pause");
    root.classList.toggle("paused", paused);
  }

  function filters() {
    const query = new URLSearchParams();
    for (const field of [...fields, reason]) {
      if (field.value.trim()) query.set(field.name, field.value.trim());
    }
    return query;
  }

  function changed() {
    list.replaceChildren();
    shown.clear();
    setPaused(false);
  }

  function row(decision) {
    const node = element(
      "li",
      { className: "decision" },
      element(
        "button",
        { type: "button", "aria-expanded": "false", click: (event) => toggle(node, event.currentTarget, decision) },
        element("span", { className: `reason ${decision.reason}`, title: MEANING[decision.reason] ?? "" }, decision.reason),
        element("b", {}, nameOf(decision.chosen)),
        element("span", { className: "detail" }, `${decision.model || "no model"} · ${decision.request || "no id"}`),
        element("span", { className: "sentence" }, decision.sentence),
      ),
    );
    return node;
  }

  function toggle(node, button, decision) {
    const open = node.querySelector(".costs");
    if (open) open.remove();
    else {
      node.append(costsOf(decision));
      setPaused(true);
    }
    button.setAttribute("aria-expanded", String(!open));
  }

  function add(decisions) {
    for (const decision of [...decisions].reverse()) {
      if (shown.has(decision.decision)) continue;
      const node = row(decision);
      shown.set(decision.decision, node);
      list.prepend(node);
    }
    for (const [key, node] of shown) {
      if (shown.size <= MOST_SHOWN) break;
      node.remove();
      shown.delete(key);
    }
  }

  async function show(live) {
    if (paused || asking) return;
    const query = filters();
    if (![...query].length) {
      setText(state, live.traffic.requests_per_second > live.decisions.length ? "a sample of them" : "");
      add(live.decisions);
      return;
    }
    query.set("limit", "20");
    asking = true;
    try {
      add(await read(`debug/decisions?${query}`));
      setText(state, shown.size ? "filtered" : "none of the remembered decisions matches");
    } catch (error) {
      setText(state, error.message);
    } finally {
      asking = false;
    }
  }

  return { show };
}
