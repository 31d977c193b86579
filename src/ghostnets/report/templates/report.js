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
}
