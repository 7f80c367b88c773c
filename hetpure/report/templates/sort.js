// Every head of a sortable table becomes a button. Without a script the table stays as it is.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const number = (text) => (/^[<+-]?\d/.test(text) ? parseFloat(text.replace(/[<,]/g, "")) : NaN);
  const compare = (a, b, sign) => {
    const x = number(a), y = number(b);
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1; // both ways last
    return sign * (Number.isNaN(x) ? a.localeCompare(b) : x - y);
  };
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows];
      const text = (row) => row.cells[column].textContent.trim();
      rows.sort((a, b) => compare(text(a), text(b), down ? -1 : 1));
      body.append(...rows);
    });
  });
}
