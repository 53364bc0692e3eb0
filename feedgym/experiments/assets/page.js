// Draws the charts of a page, and lets a click on a legend's entry fade all other series.
const axis = {
  labelColor: "var(--soft)", titleColor: "var(--soft)", domainColor: "var(--edge)", tickColor: "var(--edge)",
  gridColor: "var(--edge)", gridOpacity: 0.6, titleFontWeight: 400, labelFlush: false, tickCount: 5,
};
const config = {
  background: "transparent", font: "system-ui, sans-serif", view: { stroke: null }, axis,
  title: { color: "var(--ink)", fontSize: 12, fontWeight: 600, anchor: "start", limit: 400 },
  text: { color: "var(--ink)", fontSize: 10 }, rule: { strokeWidth: 1.2 },
};
const options = {
  mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, config,
  tooltip: { disableDefaultStyle: true, theme: "page" },
};

async function draw(place) {
  const spec = JSON.parse(place.querySelector("script").textContent);
  const { view } = await vegaEmbed(place, spec, options);
  place.view = view;
}

async function focus(button) {
  const pressed = button.getAttribute("aria-pressed") === "true";
  for (const other of button.parentElement.children) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", String(!pressed));
  for (const place of button.closest(".panels").querySelectorAll(".chart")) {
    await place.view.signal("only", pressed ? null : button.dataset.series).runAsync();
  }
}

for (const button of document.querySelectorAll(".legend button")) button.onclick = () => focus(button);
const drawn = [...document.querySelectorAll(".chart")].map(draw);
Promise.all(drawn).then(() => (document.documentElement.dataset.drawn = drawn.length));
