for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const rising = heading.getAttribute("aria-sort") !== "ascending";
    const isNumber = heading.classList.contains("number");
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [a, b].map(row => row.cells[column].textContent);
      return (isNumber ? x - y : x.localeCompare(y)) * (rising ? 1 : -1);
    });
    table.tBodies[0].append(...rows);
    headings.forEach(each => each.setAttribute("aria-sort", each === heading ? (rising ? "ascending" : "descending") : "none"));
  }));
}
