// Figures for people.

const NOTHING = "–";

function count(value) {
  if (value === null) return NOTHING;
  return Math.round(value).toLocaleString("en");
}

function rate(perSecond) {
  if (perSecond > 0 && perSecond < 0.05) return "< 0.1";
  return perSecond && perSecond < 10 ? perSecond.toFixed(1) : count(perSecond);
}

function short(value) {
  if (value >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
  if (value >= 1e4) return `${Math.round(value / 1e3)}k`;
  if (value >= 1e3) return `${(value / 1e3).toFixed(1)}k`;
  return count(value);
}

function percent(ratio) {
  return ratio === null ? NOTHING : `${Math.round(100 * ratio)} %`;
}

function seconds(value) {
  if (value === null) return NOTHING;
  if (value === 0) return "0";
  if (value < 0.001) return `${Math.round(1e6 * value)} µs`;
  if (value < 0.01) return `${(1e3 * value).toFixed(1)} ms`;
  if (value < 1) return `${Math.round(1e3 * value)} ms`;
  if (value < 10) return `${value.toFixed(1)} s`;
  return `${Math.round(value)} s`;
}

function milliseconds(value) {
  return seconds(value / 1000);
}

function age(value) {
  if (value < 60) return `${Math.round(value)} s`;
  if (value < 3600) return `${Math.round(value / 60)} min`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86400)} d ${Math.round((value % 86400) / 3600)} h`;
}

// An endpoint's name without its namespace.
function nameOf(endpoint) {
  return endpoint.slice(endpoint.indexOf("/") + 1);
}
