(() => {
  const { element, attach, close, walk } = cards;
  const data = JSON.parse(document.getElementById("data").textContent);
  const texts = Array.from(document.querySelectorAll(".tokens .text"));
  const tokens = Array.from(document.querySelectorAll(".tokens .text .token"));
  const numbers = new Map(tokens.map((token, index) => [token, index]));

  // The title of a mark would come up a second time, as the browser's own tooltip.
  for (const mark of document.querySelectorAll(".chart .mark[tabindex]")) {
    mark.querySelector("title").remove();
    attach(mark, () => mark.getAttribute("aria-label").split("\n").map((line, at) => element("p", at ? "line" : "word", line)));
  }

  const layers = Array.from(document.querySelectorAll('.switch input[name="layer"]'));
  const facets = Array.from(document.querySelectorAll('.switch input[name^="facet"]'));
  const legends = document.querySelectorAll(".tokens .key-row");
  const painted = new Map(texts.map((text) => [text, 0]));
  let layer = 0;

  // Only texts in sight are painted: the others are when they are chosen.
  const paint = (text) => {
    if (painted.get(text) === layer || text.closest("[hidden]")) return;
    painted.set(text, layer);
    const { scale, levels } = data.layers[layer];
    text.dataset.scale = scale;
    for (const token of text.querySelectorAll(".token")) token.dataset.level = levels[numbers.get(token)];
  };

  for (const text of texts) walk(text, (token) => data.tokens[numbers.get(token)]);

  for (const choice of layers) {
    choice.addEventListener("change", () => {
      layer = Number(choice.value);
      texts.forEach(paint);
      legends.forEach((legend, index) => (legend.hidden = index !== layer));
    });
  }
  const choose = () => {
    const chosen = facets.filter((facet) => facet.checked).map((facet) => facet.value).join(" ");
    for (const panel of document.querySelectorAll(".tokens .panel")) panel.hidden = panel.dataset.choice !== chosen;
    texts.forEach(paint);
  };
  for (const facet of facets) facet.addEventListener("change", () => (close(), choose()));
  if (texts.length) {
    // What the browser kept of an earlier visit may differ from what the page was painted with.
    layer = Number((layers.find((choice) => choice.checked) || layers[0]).value);
    legends.forEach((legend, index) => (legend.hidden = index !== layer));
    if (facets.length) choose();
    texts.forEach(paint);
    document.documentElement.classList.add("scripted");
  }
})();
