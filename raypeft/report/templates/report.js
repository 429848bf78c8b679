"use strict";
// Sorting, filtering and the documents that changed. Text reaches the page by textContent only.
(() => {
  const PAGE = 10;

  const make = (tag, text, properties) => {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    return Object.assign(element, properties);
  };

  const labelled = (text, control) => {
    const label = make("label", text);
    label.append(control);
    return label;
  };

  // --- tables -------------------------------------------------------------------------------

  const keyOf = (cell) =>
    cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);

  const isMissing = (key) => key === "–" || Number.isNaN(key);

  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, undefined, { numeric: true });
  };

  const sortRows = (table, column, direction) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [keyOf(row.cells[column]), row]);
    rows.sort(([a], [b]) => {
      // What is missing stands last, whichever way round.
      if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
      return direction * compare(a, b);
    });
    body.append(...rows.map(([, row]) => row));
  };

  const makeSortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const label = head.querySelector(".head");
      const button = make("button", "", { type: "button" });
      label.replaceWith(button);
      button.append(label);
      button.addEventListener("click", () => {
        const first = head.classList.contains("number") ? "descending" : "ascending";
        const now = head.getAttribute("aria-sort");
        const other = first === "ascending" ? "descending" : "ascending";
        const next = now === first ? other : first;
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", next);
        sortRows(table, column, next === "ascending" ? 1 : -1);
      });
    });
  };

  const makeFilterable = (table) => {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 4) return;
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const input = make("input", "", { type: "search", autocomplete: "off" });
    const count = make("output", `${rows.length} rows`);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, number) => {
        row.hidden = !words.every((word) => texts[number].includes(word));
        shown += !row.hidden;
      });
      count.textContent = `${shown} of ${rows.length} rows`;
    });
    const tools = make("div", "", { className: "tools" });
    tools.append(labelled(`Filter “${table.caption.textContent}”`, input), count);
    table.closest(".table").prepend(tools);
  };

  // --- documents that changed ---------------------------------------------------------------

  const side = (title, value, answer) => {
    const part = make("div");
    part.append(make("h4", `${title}: ${value}`), make("pre", answer[0] || "(empty)", { tabIndex: 0 }));
    if (answer[1]) part.append(make("p", `${answer[1]} more characters`, { className: "note" }));
    return part;
  };

  const card = (data, pair, item) => {
    const [docId, question, before, after, valueBefore, valueAfter] = item;
    const [prompt, target, cut] = data.questions[question];
    const element = make("article", "", { className: "sample" });
    element.append(make("h3", `${pair.adapter} on ${pair.task}, document ${docId}`));
    element.append(make("h4", cut ? `Prompt (its first ${cut} characters are left out)` : "Prompt"));
    element.append(make("pre", prompt || "(empty)", { tabIndex: 0 }));
    element.append(make("h4", "Target"), make("pre", target || "(empty)", { tabIndex: 0 }));
    const sides = make("div", "", { className: "sides" });
    sides.append(
      side(`Baseline, ${pair.metric}`, valueBefore, data.answers[before]),
      side(`${pair.adapter}, ${pair.metric}`, valueAfter, data.answers[after]),
    );
    element.append(sides);
    return element;
  };

  const choice = (label, values, all) => {
    const select = make("select");
    select.append(make("option", all, { value: "" }));
    values.forEach((value, number) => select.append(make("option", value, { value: `${number}` })));
    return { select, label: labelled(label, select), value: () => values[Number(select.value)] };
  };

  const unique = (values) => [...new Set(values)];

  const showSamples = (app, data) => {
    const several = unique(data.pairs.map((pair) => pair.base)).length > 1;
    const nameOf = (pair) => (several ? `${pair.base} / ${pair.adapter}` : pair.adapter);
    const items = data.pairs.flatMap((pair) =>
      pair.items.map((item) => {
        const texts = [...data.questions[item[1]].slice(0, 2), data.answers[item[2]][0], data.answers[item[3]][0]];
        return { pair, item, text: texts.join("\n").toLowerCase() };
      }),
    );
    const adapter = choice("Adapter", unique(data.pairs.map(nameOf)), "all");
    const task = choice("Task", unique(data.pairs.map((pair) => pair.task)), "all");
    const which = choice("Changed to the", ["worse", "better"], "worse and better");
    const search = make("input", "", { type: "search", autocomplete: "off" });
    const count = make("output");
    const back = make("button", "Previous", { type: "button" });
    const next = make("button", "Next", { type: "button" });
    const list = make("div");
    let page = 0;

    const isBetter = ({ pair, item }) => (item[5] > item[4]) === pair.higher;
    const isChosen = (entry) =>
      (!adapter.select.value || nameOf(entry.pair) === adapter.value()) &&
      (!task.select.value || entry.pair.task === task.value()) &&
      (!which.select.value || isBetter(entry) === (which.value() === "better")) &&
      (!search.value || entry.text.includes(search.value.toLowerCase()));

    const totals = () => {
      const pairs = data.pairs.filter(
        (pair) =>
          (!adapter.select.value || nameOf(pair) === adapter.value()) &&
          (!task.select.value || pair.task === task.value()),
      );
      const sum = (name) => pairs.reduce((total, pair) => total + pair[name], 0);
      return `${sum("worse")} changed to the worse and ${sum("better")} to the better`;
    };

    const show = () => {
      const found = items.filter(isChosen);
      const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
      page = Math.min(page, last);
      const part = found.slice(page * PAGE, (page + 1) * PAGE);
      list.replaceChildren(...part.map(({ pair, item }) => card(data, pair, item)));
      count.textContent = `${totals()}; ${found.length} of them are in this page, page ${page + 1} of ${last + 1}`;
      back.disabled = page === 0;
      next.disabled = page === last;
    };
    const restart = () => {
      page = 0;
      show();
    };
    [adapter.select, task.select, which.select].forEach((one) => one.addEventListener("change", restart));
    search.addEventListener("input", restart);
    back.addEventListener("click", () => { page -= 1; show(); });
    next.addEventListener("click", () => { page += 1; show(); });

    const tools = make("div", "", { className: "tools" });
    tools.append(adapter.label, task.label, which.label, labelled("Search", search), back, next, count);
    app.replaceChildren(tools, list);
    show();
  };

  // --- start --------------------------------------------------------------------------------

  document.querySelectorAll("table").forEach((table) => {
    makeSortable(table);
    makeFilterable(table);
  });
  const app = document.getElementById("samples-app");
  if (app) showSamples(app, JSON.parse(document.getElementById("samples-data").textContent));
  // What is folded away on a screen has to be on paper.
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((one) => { one.open = true; });
  });
})();
