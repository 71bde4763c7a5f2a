// Where would this request go, and why? Nothing is sent to an engine and nothing is counted.

const PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/generate"];

function makeDryRun(root) {
  const body = element("textarea", { rows: 4, spellcheck: false, "aria-label": "Body of the request", placeholder: '{"model": "…", "messages": [{"role": "user", "content": "…"}]}' });
  const path = element("select", { "aria-label": "Path" }, ...PATHS.map((each) => element("option", {}, each)));
  const answer = element("div", { className: "answer", role: "status" });
  const form = element("form", { submit: ask }, body, element("p", {}, path, element("button", { type: "submit" }, "Where would it go?")));
  root.append(element("h2", {}, "Dry run ", element("span", { className: "detail" }, "paste a request's body: nothing is sent or counted")), form, answer);

  async function ask(event) {
    event.preventDefault();
    try {
      const query = new URLSearchParams({ path: path.value, candidates: "8" });
      const response = await fetch(`debug/explain?${query}`, { method: "POST", body: body.value, headers: { "content-type": "application/json" }, signal: AbortSignal.timeout(TIMEOUT) });
      const result = await response.json();
      if (result.error) show(result.error);
      else if (result.rejected) show(`Refused with ${result.rejected.status} ${result.rejected.reason}: ${result.rejected.message}`);
      else show(`→ ${nameOf(result.chosen)}: ${result.sentence}`, costsOf(result));
    } catch (error) {
      show(error.message);
    }
  }

  function show(text, ...more) {
    answer.replaceChildren(element("p", {}, text), ...more);
  }
}
