// Lines over time as SVG. Knows no service: a chart is told its series and their numbers.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 480, HEIGHT = 150, LEFT = 52, BOTTOM = 20, TOP = 8, RIGHT = 8;

const make = (name, attributes, ...children) => {
  const element = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  element.append(...children);
  return element;
};

/** The next round number that is at least `value`. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value * 0.999999) * power;
}

/** `series`: [{name, values: (number | null)[]}], all as long as `seconds` (of each value, 0 is now, negative before). */
export function draw(chart, { title, series, seconds, format, span, limit = null, least = 0 }) {
  const known = series.flatMap((one) => one.values).filter((value) => value !== null);
  const top = roundUp(Math.max(limit ?? 0, least, ...known) * (limit ? 1 : 1.05));
  const x = (second) => LEFT + (WIDTH - LEFT - RIGHT) * (1 + second / span);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const picture = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  for (const share of [0, 0.5, 1]) {
    const label = make("text", { x: LEFT - 6, y: y(top * share) + 4, "text-anchor": "end" });
    label.textContent = format(top * share);
    picture.append(make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(top * share), y2: y(top * share) }), label);
  }
  for (const [second, anchor] of [[-span, "start"], [-span / 2, "middle"], [0, "end"]]) {
    const label = make("text", { x: x(second), y: HEIGHT - 5, "text-anchor": anchor });
    label.textContent = second ? `${Math.round(-second / 60 * 10) / 10} min ago` : "now";
    picture.append(label);
  }
  if (limit !== null) picture.append(make("line", { class: "limit", x1: LEFT, x2: WIDTH - RIGHT, y1: y(limit), y2: y(limit) }));
  series.forEach((one, index) => {
    let path = "", drawing = false;
    one.values.forEach((value, at) => {
      if (value === null) { drawing = false; return; }
      path += `${drawing ? "L" : "M"}${x(seconds[at]).toFixed(1)} ${y(Math.min(value, top)).toFixed(1)}`;
      drawing = true;
    });
    picture.append(make("path", { d: path || "M0 0", class: `line line-${index}` }));
  });
  if (!known.length) {
    const none = make("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT / 2, "text-anchor": "middle", class: "none" });
    none.textContent = "nothing yet";
    picture.append(none);
  }
  chart.replaceChildren(picture);
}
