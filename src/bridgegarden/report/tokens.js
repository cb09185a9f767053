"use strict";
// The card on a token or mark, and texts whose tokens are walked through with the arrow keys.
const cards = (() => {
  const card = document.getElementById("card");
  let owner = null;
  let closing = 0;

  const element = (tag, kind, content) => {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (content !== undefined) made.textContent = content;
    return made;
  };

  const percent = (share) => {
    const value = share * 100;
    if (value > 0 && value < 0.1) return "<0.1 %";
    return (value < 10 ? value.toFixed(1) : value < 99.95 ? value.toFixed(value < 99 ? 0 : 1) : "100") + " %";
  };

  const actionTable = ({ heads, rows }) => {
    const table = element("table", "actions");
    const head = element("tr");
    for (const name of heads) head.append(element("th", "", name));
    table.append(head);
    for (const [written, ...cells] of rows) {
      const row = element("tr", written ? "written" : "");
      cells.forEach((cell, at) => row.append(element(at ? "td" : "th", "", cell)));
      table.append(row);
    }
    return table;
  };

  const tokenCard = (token) => {
    const parts = [element("p", "word", token.text)];
    const facts = element("dl", "facts");
    for (const [name, value] of token.facts) facts.append(element("dt", "", name), element("dd", "", value));
    parts.push(facts);
    if (token.table) parts.push(actionTable(token.table));
    const models = element("dl", "models");
    for (const { model, top, note } of token.thoughts) {
      const bars = element("dd");
      for (const [word, share, written] of top) {
        const bar = element("span", "bar" + (written ? " written" : ""));
        bar.style.setProperty("--share", (share * 100).toFixed(1) + "%");
        bar.append(element("b", "", word), " ", percent(share));
        bars.append(bar);
      }
      models.append(element("dt", "", model), element("dd", "note", note), bars);
    }
    parts.push(models);
    return parts;
  };

  const place = (target) => {
    card.style.removeProperty("left");
    card.style.removeProperty("top");
    if (window.innerWidth <= 600) {
      // The card lies over the foot of the window: what it is about must stay in sight.
      const hidden = target.getBoundingClientRect().bottom + 12 - card.getBoundingClientRect().top;
      if (hidden > 0) window.scrollBy({ top: hidden, behavior: "instant" });
      return;
    }
    const box = (target.querySelector && target.querySelector(".halo") || target).getClientRects()[0];
    if (!box) return;
    const [width, height] = [card.offsetWidth, card.offsetHeight];
    const [pageWidth, pageHeight] = [document.documentElement.clientWidth, window.innerHeight];
    const left = Math.max(12, Math.min(box.left, pageWidth - width - 12));
    const below = box.bottom + 8 + height <= pageHeight || box.top - 8 - height < 0;
    card.style.left = left + window.scrollX + "px";
    card.style.top = (below ? box.bottom + 8 : box.top - 8 - height) + window.scrollY + "px";
  };

  const open = (target, parts) => {
    clearTimeout(closing);
    close();
    owner = target;
    card.replaceChildren(...parts);
    card.hidden = false;
    target.classList.add("open");
    target.setAttribute("aria-describedby", "card");
    place(target);
  };

  const close = () => {
    if (owner) {
      owner.classList.remove("open");
      owner.removeAttribute("aria-describedby");
    }
    owner = null;
    card.hidden = true;
  };

  const closeSoon = () => {
    clearTimeout(closing);
    closing = setTimeout(() => {
      if (owner && owner === document.activeElement) return;
      close();
    }, 160);
  };

  const attach = (target, content) => {
    const show = () => open(target, content());
    target.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && show());
    target.addEventListener("pointerleave", closeSoon);
    target.addEventListener("focus", show);
    target.addEventListener("blur", closeSoon);
    target.addEventListener("click", show);
  };

  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

  // One listener a text: thousands of tokens would take as many. `told` has what is on the card of a token.
  const walk = (text, told) => {
    const show = (token) => token && open(token, tokenCard(told(token)));
    const under = (event) => event.target.closest(".token");
    let entry = null;
    text.addEventListener("pointerover", (event) => {
      const token = under(event);
      if (event.pointerType === "mouse" && token && token !== owner) show(token);
    });
    text.addEventListener("pointerout", (event) => under(event) && closeSoon());
    text.addEventListener("focusout", closeSoon);
    text.addEventListener("click", (event) => show(under(event)));
    text.addEventListener("focusin", (event) => {
      const token = under(event);
      if (!token) return;
      // One stop for the Tab key, wherever the reader was last; arrow keys do the rest.
      (entry || text.querySelector(".token")).tabIndex = -1;
      token.tabIndex = 0;
      entry = token;
      show(token);
    });
    text.addEventListener("keydown", (event) => {
      const own = Array.from(text.querySelectorAll(".token"));
      const at = own.indexOf(document.activeElement);
      if (at < 0) return;
      let next = at + (step[event.key] || 0);
      if (event.key === "Home") next = 0;
      if (event.key === "End") next = own.length - 1;
      if (event.key === "Enter" || event.key === " ") show(own[at]);
      else if (next === at && !(event.key in step)) return;
      event.preventDefault();
      own[Math.max(0, Math.min(next, own.length - 1))].focus();
    });
  };

  card.addEventListener("pointerenter", () => clearTimeout(closing));
  card.addEventListener("pointerleave", closeSoon);
  document.addEventListener("keydown", (event) => event.key === "Escape" && close());
  document.addEventListener("pointerdown", (event) => {
    if (owner && !owner.contains(event.target) && !card.contains(event.target)) close();
  });
  window.addEventListener("resize", () => owner && place(owner));

  return { element, attach, close, walk };
})();
