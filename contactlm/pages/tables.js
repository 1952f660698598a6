"use strict";
// Pages of tables: each is put where the data says, with its search field and count.
try {
  for (const { place, columns, rows, caption, sort } of page.data().tables) {
    const table = page.table(document.getElementById(place), { columns, rows, caption });
    if (sort) table.sort(sort.column, sort.down);
    const count = document.getElementById(`${place}-count`), field = document.querySelector(`[data-searches="${place}"]`);
    const tell = (number) => count && (count.textContent = number === rows.length ? "" : `${number} of ${rows.length}`);
    if (field) field.addEventListener("input", () => tell(table.search(field.value)));
  }
  page.ready();
} catch (error) {
  page.fail(error);
}
