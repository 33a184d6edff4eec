// Small line charts in SVG; colours (Okabe and Ito's) and dashes both tell lines apart.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8b8b00", "#7a7a7a"];
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3", "9 3 2 3"];
const escaped = (text) => String(text).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
const short = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 1 ? value.toFixed(2) : value.toPrecision(2));

// lines: [{name, values, colour, dash}], band: {low, high} per point, xs: labels of the points.
const chart = ({ title, lines, xs, low, high, band = null, percent = false, xTitle = "", W = 290, H = 165 }) => {
  const L = 44, R = 10, T = 10, B = 34;
  const x = (i) => L + ((W - L - R) * i) / Math.max(1, xs.length - 1);
  const y = (value) => T + (H - T - B) * (1 - (value - low) / (high - low || 1));
  const said = (value) => (percent ? `${Math.round(100 * value)} %` : short(value));
  const path = (values) => values.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const grid = [low, (low + high) / 2, high].map((value) =>
    `<path class="axis" d="M${L} ${y(value)}H${W - R}"/><text x="${L - 6}" y="${y(value) + 4}" text-anchor="end">${said(value)}</text>`).join("");
  const every = Math.ceil(xs.length / 10);
  const ticks = xs.map((label, i) => i % every ? "" : `<text x="${x(i)}" y="${H - B + 16}" text-anchor="middle">${escaped(label)}</text>`).join("");
  const area = !band ? "" : `<path class="band" d="${path(band.high)}${band.low.map((v, i) => `L${x(band.low.length - 1 - i).toFixed(1)} ${y(band.low[band.low.length - 1 - i]).toFixed(1)}`).join("")}Z"/>`;
  const drawn = lines.map((line) => `<path d="${path(line.values)}" fill="none" stroke="${line.colour}" stroke-width="2" stroke-dasharray="${line.dash || ""}"/>`).join("");
  return `<figure><figcaption>${escaped(title)}</figcaption><svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${escaped(title)}: ${
    escaped(lines.map((line) => `${line.name} from ${said(line.values[0])} to ${said(line.values[line.values.length - 1])}`).join("; "))}">${
    grid}${ticks}${area}${drawn}<text x="${(W + L) / 2}" y="${H - 2}" text-anchor="middle">${escaped(xTitle)}</text></svg></figure>`;
};

const key = (lines) => `<div class="bar">${lines.map((line) => `<span class="legend"><svg viewBox="0 0 26 8" style="width:26px"><path d="M0 4H26" stroke="${
  line.colour}" stroke-width="2.5" stroke-dasharray="${line.dash || ""}"/></svg>${escaped(line.name)}</span>`).join("")}</div>`;
