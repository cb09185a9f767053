(() => {
  const { element, close, walk } = cards;
  const { layers, turns, against } = JSON.parse(document.getElementById("data").textContent);
  const [log, words, status, send, stop] = ["log", "words", "status", "send", "stop"].map((id) => document.getElementById(id));
  const system = document.getElementById("system");
  const empty = log.firstElementChild;
  const choices = Array.from(document.querySelectorAll('.switch input[name="layer"]'));
  const legends = document.querySelectorAll(".tokens .key-row");
  const told = new WeakMap();
  let layer = 0;
  let said = []; // what was said so far: messages, or the parts of the text that goes on
  let writing = null;

  const paint = (text) => {
    text.dataset.scale = layers[layer];
    for (const token of text.querySelectorAll(".token")) token.dataset.level = told.get(token).levels[layer];
  };
  const choose = () => {
    layer = Number(choices.find((choice) => choice.checked).value);
    legends.forEach((legend, index) => (legend.hidden = index !== layer));
    log.querySelectorAll(".text").forEach(paint);
  };
  choices.forEach((choice) => choice.addEventListener("change", choose));
  choose(); // the browser may have kept another choice of an earlier visit

  const say = (line, bad) => {
    status.textContent = line;
    status.classList.toggle("bad", Boolean(bad));
  };

  const atEnd = () => window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 40;
  const toEnd = () => window.scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });

  const turn = (who, body) => {
    const made = element("div", "turn");
    made.append(element("p", "who", who), body);
    log.append(made);
    return made;
  };

  const answerText = () => {
    const text = element("p", "text");
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", "Answer. Arrow keys move from token to token.");
    text.dataset.scale = layers[layer];
    walk(text, (token) => told.get(token).card);
    return text;
  };

  const append = (text, event) => {
    const follows = atEnd();
    const token = element("span", "token" + (event.parts ? " parts" : ""), event.text || "\u25cc");
    token.setAttribute("role", "button");
    token.tabIndex = text.querySelector(".token") ? -1 : 0;
    token.dataset.level = event.levels[layer];
    told.set(token, event);
    if (event.gap && text.childNodes.length) text.append(event.gap);
    text.append(token);
    if (follows) toEnd();
  };

  const summary = (answer, text, end, bad) => {
    const count = text.querySelectorAll(".token").length;
    const parts = Array.from(text.querySelectorAll(".parts"));
    const line = element("p", "sum", `${count} ${count === 1 ? "token" : "tokens"}.`);
    if (against && count) line.append(` The two models' likeliest tokens differ at ${parts.length}.`);
    if (parts.length) {
      let at = -1;
      const next = element("button", "", "Show the next");
      next.type = "button";
      next.addEventListener("click", () => parts[(at = (at + 1) % parts.length)].focus());
      line.append(next);
    }
    if (end) line.append(" ", element("span", bad ? "bad" : "", end));
    answer.append(line);
  };

  // One JSON object a line, as it is written.
  const lines = async function* (reply) {
    const reader = reply.body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = parts.pop();
      for (const part of parts) yield JSON.parse(part);
    }
  };

  const request = (own) => {
    const before = turns && system.value.trim() ? [{ role: "system", content: system.value }] : [];
    const content = turns ? { messages: [...before, ...said, { role: "user", content: own }] } : { prompt: said.join("") + own };
    const [temperature, most] = ["temperature", "most"].map((id) => document.getElementById(id).valueAsNumber);
    return {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...content, temperature, max_new_tokens: most }),
      signal: writing.signal,
    };
  };

  const ask = async (own) => {
    const asked = turn(turns ? "you" : "text", element("p", "asked", own));
    const text = answerText();
    const answer = turn("", text);
    let [written, end, bad] = ["", "The connection ended before the answer did. Is the command still running?", true];
    try {
      const reply = await fetch("answer", request(own));
      for await (const event of lines(reply)) {
        if (event.error) throw new Error(event.error);
        append(text, event);
        written += event.said;
        if (event.end !== null) [end, bad] = [event.end, false];
      }
    } catch (error) {
      const stopped = error.name === "AbortError";
      [end, bad] = [stopped ? "Stopped." : error instanceof TypeError ? end : error.message, !stopped];
    }
    summary(answer, text, end, bad);
    // An answer that never came is no part of the conversation: what was said is there to be said again.
    if (!text.childNodes.length) {
      asked.remove();
      answer.remove();
      words.value = words.value || own;
      say(end, bad);
      return;
    }
    said.push(...(turns ? [{ role: "user", content: own }, { role: "assistant", content: written }] : [own, written]));
    say(`The answer is there: ${answer.querySelector(".sum").firstChild.textContent}`);
  };

  const busy = (on) => {
    writing = on ? new AbortController() : null;
    send.hidden = on;
    stop.hidden = !on;
    document.getElementById("new").disabled = on;
  };

  const submit = async () => {
    const own = words.value;
    if (writing || !own.trim()) return;
    close();
    empty.remove();
    words.value = "";
    say("Writing ...");
    busy(true);
    toEnd();
    await ask(own);
    const kept = document.activeElement === stop || document.activeElement === document.body;
    busy(false);
    if (kept) words.focus();
  };

  document.getElementById("say").addEventListener("submit", (event) => (event.preventDefault(), submit()));
  words.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  stop.addEventListener("click", () => writing && writing.abort());
  document.getElementById("new").addEventListener("click", () => {
    close();
    said = [];
    log.replaceChildren(empty);
    say("");
    words.focus();
  });
  words.focus();
})();
