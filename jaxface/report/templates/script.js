const value = cell => {
  const raw = cell.dataset.sort ?? cell.textContent.trim();
  const number = parseFloat(raw.replace(/,/g, ''));
  return raw === '' || raw === '—' ? null : /^[-+\d.]/.test(raw) && !isNaN(number) ? number : raw.toLowerCase();
};
const order = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b
  : String(a).localeCompare(String(b), undefined, {numeric: true});
document.querySelectorAll('thead button').forEach(button => button.addEventListener('click', () => {
  const head = button.parentElement, column = head.cellIndex, body = head.closest('table').tBodies[0];
  const down = head.getAttribute('aria-sort') === 'descending';
  head.parentElement.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', down ? 'ascending' : 'descending');
  const keyed = [...body.rows].map(row => [value(row.cells[column]), row]);
  keyed.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : (down ? 1 : -1) * order(a, b));
  keyed.forEach(([, row]) => body.append(row));
}));
let folded = [];
addEventListener('beforeprint', () => {
  folded = [...document.querySelectorAll('details:not([open])')];
  folded.forEach(part => part.open = true);
});
addEventListener('afterprint', () => folded.forEach(part => part.open = false));
