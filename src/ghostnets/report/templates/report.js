"use strict";
{
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = dark() ? "Light theme" : "Dark theme"; };
  const remember = (value) => { try { localStorage.setItem("ghostnets-theme", value); } catch { /* private window */ } };
  const recall = () => { try { return localStorage.getItem("ghostnets-theme"); } catch { return null; } };
  if (["light", "dark"].includes(recall())) root.dataset.theme = recall();
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; remember(root.dataset.theme); label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  theme.hidden = false;
  label();

  const table = document.querySelector("table.sites");
  if (table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];

    const sort = (head, column) => {
      const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
      const numeric = head.classList.contains("n");
      const key = (row) => (numeric ? row.cells[column].dataset.value : row.cells[column].textContent.trim());
      rows.sort((a, b) => {
        const x = key(a), y = key(b);
        if (numeric && (x === undefined || y === undefined)) return (x === undefined) - (y === undefined);
        return way * (numeric ? x - y : x.localeCompare(y, "en", { numeric: true }));
      });
      body.append(...rows);
    };
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => sort(head, column));
      head.replaceChildren(button);
    });

    const search = document.getElementById("search");
    const found = document.getElementById("found");
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
      const shown = rows.filter((row) => !row.hidden).length;
      found.textContent = words.length ? `${shown} of ${rows.length} sites` : "";
    };
    search.addEventListener("input", filter);
    search.addEventListener("keydown", (event) => { if (event.key === "Escape") { search.value = ""; filter(); } });
    addEventListener("hashchange", () => { search.value = ""; filter(); });
    document.getElementById("tools").hidden = false;
  }

  const strip = document.getElementById("strip");
  if (strip) {
    const layers = JSON.parse(document.getElementById("layers").textContent);
    const bars = [...strip.children];
    const grid = document.getElementById("maps");
    const words = document.getElementById("map-words");
    const told = words.textContent;

    const point = (cells, rows, at) => {
      cells.forEach((cell) => cell.classList.remove("ghost", "source"));
      words.textContent = told;
      if (at === undefined) return;
      const { from, words: said } = rows[at];
      cells[at].classList.add("ghost");
      const source = rows.findIndex((row) => row.map === from);
      if (source >= 0) cells[source].classList.add("source");
      words.textContent = said;
    };
    const show = (number) => {
      const layer = layers[number];
      bars.forEach((bar, k) => { bar.setAttribute("aria-pressed", k === number); bar.tabIndex = k === number ? 0 : -1; });
      document.getElementById("layer-name").textContent = layer.name;
      document.getElementById("layer-words").textContent = layer.words;
      const { columns, rows, ratio, sprite } = layer;
      const cells = layer.maps.map((row, k) => {
        const cell = document.createElement("button");
        cell.type = "button";
        cell.style.backgroundImage = `url(${sprite})`;
        cell.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
        const x = k % columns, y = Math.floor(k / columns);
        cell.style.backgroundPosition = `${columns > 1 ? 100 * x / (columns - 1) : 0}% ${rows > 1 ? 100 * y / (rows - 1) : 0}%`;
        cell.style.aspectRatio = `${1 / ratio}`;
        cell.setAttribute("aria-label", `map ${row.map}`);
        for (const start of ["pointerenter", "focus"]) cell.addEventListener(start, () => point(cells, layer.maps, k));
        for (const end of ["pointerleave", "blur"]) cell.addEventListener(end, () => point(cells, layer.maps));
        return cell;
      });
      grid.replaceChildren(...cells);
      point(cells, layer.maps);
      document.getElementById("layer").hidden = false;
    };
    bars.forEach((bar, k) => {
      bar.addEventListener("click", () => show(k));
      bar.addEventListener("keydown", (event) => {
        const next = { ArrowRight: k + 1, ArrowLeft: k - 1, Home: 0, End: bars.length - 1 }[event.key];
        if (next === undefined || !bars[next]) return;
        event.preventDefault();
        show(next);
        bars[next].focus();
      });
    });
    const colour = document.getElementById("colour");
    colour.hidden = false;
    colour.addEventListener("change", (event) => { strip.dataset.colour = event.target.value; });
    document.querySelectorAll("table.sites tbody tr").forEach((row) => {
      row.classList.add("chosen");
      row.addEventListener("click", () => { show(row.id.split("-")[1] - 1); document.getElementById("h-strip").scrollIntoView({ block: "start" }); });
    });
    if (bars.length) show(Math.max(0, layers.findIndex((layer) => layer.maps.length)));
  }
}
