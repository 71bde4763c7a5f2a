// Reads the picker once a second, while the page is visible. All addresses are relative: the page may be behind a proxy.

const SECOND = 1000;
const TIMEOUT = 5000;
const LOST = 3000; // without data for so long, the figures no longer count as present

async function read(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(TIMEOUT), cache: "no-store" });
  if (!response.ok) throw new Error(`the picker answers ${response.status}`);
  return response.json();
}

// Call `show(document)` each second, `showHistory(history)` when a point of the sparklines is over, and `lost(reason)` when
// the picker does not answer.
async function follow(show, showHistory, lost) {
  let historyDue = 0;
  let shownAt = -LOST;
  for (;;) {
    const began = performance.now();
    if (!document.hidden) {
      try {
        const live = await read("debug/live");
        if (began >= historyDue) {
          const history = await read("debug/live/history");
          historyDue = began + history.seconds * SECOND;
          showHistory(history);
        }
        show(live);
        shownAt = began;
      } catch (error) {
        if (began - shownAt >= LOST) lost(error.name === "TimeoutError" ? "the picker does not answer" : error.message);
      }
    }
    await new Promise((wake) => setTimeout(wake, Math.max(100, SECOND - (performance.now() - began))));
  }
}
